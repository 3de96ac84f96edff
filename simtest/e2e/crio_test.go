package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/granary-oci/granary/simtest/programs"
)

// crioConfig is of a CRI-O that pulls, and runs nothing: it takes for granted that there is
// a program which makes namespaces.
const crioConfig = `[crio]
root = "DIR/root"
runroot = "DIR/run"
storage_driver = "vfs"
log_dir = "DIR/log"
version_file = "DIR/version"
version_file_persist = "DIR/persistent"
clean_shutdown_file = "DIR/clean"
[crio.api]
listen = "DIR/sock"
[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
pinns_path = "/bin/true"
namespaces_dir = "DIR/namespaces"
container_exits_dir = "DIR/exits"
container_attach_socket_dir = "DIR/attach"
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "RUNC"
[crio.network]
network_dir = "DIR/none"
plugin_dirs = ["DIR/none"]
[crio.nri]
enable_nri = false
`

// startCRIO starts a CRI-O with an empty store on a machine's files, and returns it and its
// socket.
func startCRIO(t *testing.T, root string) (daemon *programs.Process, socket string) {
	t.Helper()
	programs.NeedRoot(t)
	crio, cri, runc := programs.Tool(t, "crio"), programs.Tool(t, "cri"), programs.OfSystem(t, "runc")
	programs.OfSystem(t, "conmon")
	dir := programs.ShortDir(t)
	socket = filepath.Join(dir, "sock")
	config := programs.Write(t, dir, "crio.conf", strings.NewReplacer("DIR", dir, "RUNC", runc).Replace(crioConfig))
	daemon = programs.Start(t, machine(t, root, "/etc/containers", crio), "--config", config, "--config-dir", "")
	programs.Eventually(t, "CRI-O answers", func() bool {
		out, _ := programs.TryRun(t, nil, cri, socket, "not a reference")
		return !strings.Contains(out, "code = Unavailable")
	})
	return daemon, socket
}

// TestConfiguredCRIO pulls as a kubelet does, from a registry by its own name, and from
// Docker Hub, which the node alone has. When that is taken back and CRI-O told of it, it goes
// to the registry itself.
func TestConfiguredCRIO(t *testing.T) {
	r := startRegistry(t)
	f := startFront(t, r)
	n := startNode(t, r.URL, "--upstream", f.address+"="+f.url)
	files := map[string]string{
		"etc/containers/policy.json":                    `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"etc/containers/registries.conf":                "# by hand\nunqualified-search-registries = [\"docker.io\"]\n",
		"etc/containers/registries.conf.d/10-corp.conf": fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true # by hand\n", f.address),
	}
	var daemon *programs.Process
	var socket string
	pull := func(ref string) {
		t.Helper()
		if got := programs.Run(t, nil, programs.Tool(t, "cri"), socket, ref); !strings.Contains(got, string(image.Manifest.Digest)) {
			t.Errorf("CRI-O has %s, want %s", got, image.Manifest.Digest)
		}
	}
	args := []string{"--registry", f.address, "--registry", "docker.io"}
	configuredFor(t, n, "crio", files, args, func(t *testing.T, root string) {
		daemon, socket = startCRIO(t, root)
		pull(f.address + "/go:v1")
		if f.seen("cri-o") > 0 || f.seen("granary") == 0 {
			t.Errorf("at the registry came %v", f.who)
		}
		pull("docker.io/library/go:v1")
	})
	if err := daemon.Cmd.Process.Signal(syscall.SIGHUP); err != nil { // systemctl reload crio
		t.Fatal(err)
	}
	programs.Eventually(t, "CRI-O asks the registry itself", func() bool {
		pull(f.address + "/go:v1")
		return f.seen("cri-o") > 0
	})
}
