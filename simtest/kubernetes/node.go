package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// node is a machine with containerd and a kubelet.
type node struct {
	name    string
	dir     string
	lab     *lab
	machine *process
}

func nodeDir(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("node%d", i)) }

// before is what an operator has in hosts.toml already: where all is found that is asked of
// Docker Hub.
const before = `# ours
[host."http://` + outsideAddress + `:5000"]
  capabilities = ["pull", "resolve"]
`

const containerdConfig = `
version = 3

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + pauseImage + `'

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '/etc/containerd/certs.d'

# A machine that is one itself may not let its processes be spared.
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/usr/lib/cni']
  conf_dir = '/etc/cni/net.d'
`

// networkConfig has what most clusters have of a network: a bridge, and host ports.
const networkConfig = `
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// kubeletConfig is strict about little: the machine's disk and memory are not the kubelet's
// alone, and the machine may have control groups of version 1.
const kubeletConfig = `
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
volumePluginDir: /var/lib/kubelet/volumeplugins
syncFrequency: 10s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 1Mi}
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %q}
authorization: {mode: Webhook}
`

// startNode starts a node, with images that it need not pull.
func (l *lab) startNode(ctx context.Context, i int, images string) (*node, error) {
	n := &node{name: fmt.Sprintf("node-%d", i), dir: nodeDir(l.dir, i), lab: l}
	remove, err := makeCgroup(i)
	if remove != nil {
		l.restore = append(l.restore, remove)
	}
	config, cerr := l.authority.kubeconfig(n.name, "system:node:"+n.name, "system:nodes")
	if err := errors.Join(err, cerr, n.writeFiles(i)); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	n.machine, err = l.start(n.name+"-machine", in(l.net.nodes[i], self, "machine", n.dir), func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
	})
	if err != nil {
		return nil, err
	}
	err = until(ctx, time.Minute, n.name+" is mounted", func() error { _, err := os.Stat(filepath.Join(n.dir, "mounted")); return err }, n.machine)
	if err != nil {
		return nil, err
	}
	runtime, err := l.start(n.name+"-containerd", n.in("containerd", "--log-level=info"))
	if err != nil {
		return nil, err
	}
	if err := until(ctx, time.Minute, "containerd answers", func() error { return n.run(ctx, "ctr", "version") }, runtime); err != nil {
		return nil, err
	}
	if err := n.run(ctx, "ctr", "--namespace=k8s.io", "images", "import", images); err != nil {
		return nil, err
	}
	_, err = l.start(n.name+"-kubelet", n.in("kubelet", "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig="+config, "--hostname-override="+n.name,
		"--node-ip="+nodeAddress(i), "--node-labels=topology.kubernetes.io/zone="+zone, "--root-dir=/var/lib/kubelet"))
	return n, err
}

// zone is that of the nodes.
const zone = "east"

func (n *node) writeFiles(i int) error {
	for _, dir := range []string{"etc", "work", "lib", "log"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil {
			return err
		}
	}
	return writeFiles(filepath.Join(n.dir, "etc"), map[string]string{
		"resolv.conf":                            "nameserver " + outsideAddress + "\n",
		"containerd/config.toml":                 containerdConfig,
		"containerd/certs.d/_default/hosts.toml": before,
		"cni/net.d/10-pods.conflist":             fmt.Sprintf(networkConfig, podRange(i)),
		"kubernetes/kubelet.yaml":                fmt.Sprintf(kubeletConfig, outsideAddress, cgroup(i), n.lab.authority.file("ca.crt")),
	})
}

// in gives the command line that runs args on the node.
func (n *node) in(args ...string) []string {
	return append([]string{"nsenter", "--target=" + strconv.Itoa(n.machine.cmd.Process.Pid), "--mount", "--net", "--pid", "--"}, args...)
}

// run runs a command on the node.
func (n *node) run(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	line := n.in(args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = n.lab.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %s: %w: %s", n.name, strings.Join(args, " "), err, out)
	}
	return nil
}

// hosts returns containerd's file for all registries.
func (n *node) hosts() (string, error) {
	text, err := os.ReadFile(filepath.Join(n.dir, "etc/containerd/certs.d/_default/hosts.toml"))
	return string(text), err
}

// pullAnew pulls an image as a kubelet does, and has containerd forget it, under all the names
// that it gives to one.
const pullAnew = `set -euo pipefail
names() { ctr --namespace=k8s.io images ls -q 2>/dev/null | sort; }
before=$(names)
cri /run/containerd/containerd.sock "$0"
comm -13 <(echo "$before") <(names) | xargs -r ctr --namespace=k8s.io images rm --sync
`

// pull pulls an image of which containerd then has nothing again.
func (n *node) pull(ctx context.Context, image string) error {
	return n.run(ctx, "bash", "-c", pullAnew, image)
}
