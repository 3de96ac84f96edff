package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/simtest/programs"
)

// before is what an operator has in hosts.toml already.
const before = `# ours
[host."http://` + outsideAddress + `:5000"]
  capabilities = ["pull", "resolve"]
`

// TestDaemonSet runs the rendered DaemonSet on three machines: init containers, probes, a
// pull that crosses them, an upgrade one by one under pulls, and what uninstalling does.
func TestDaemonSet(t *testing.T) {
	ctr := tool(t, "ctr")
	values := []string{"--set", "upstreams.10\\.209\\.0\\.1:5000=http://" + outsideAddress + ":5000", "--set", "data.cacheSize=1GiB", "--set", "minReadySeconds=1",
		"--set", "contentDir=/var/lib/containerd/io.containerd.content.v1.content"}
	objects := render(t, values...)
	l := newLab(t, 3)
	l.know(objects)
	for _, m := range l.machines {
		m.prepare(t)
	}
	pods := l.startDaemonSet(t, objects)
	l.pullsCross(t, ctr, pods)
	l.isConfined(t, pods[0])

	before := l.registry.sentTo("containerd")
	upgraded := l.upgrade(t, ctr, pods, render(t, append(values, "--set", "log.level=debug")...))
	t.Logf("while pods were replaced, containerd itself has fetched %d KiB of blobs", (l.registry.sentTo("containerd")-before)>>10)

	l.uninstall(t, objects)
	for _, p := range upgraded {
		p.stop(t)
	}
	if err := l.machines[0].pull(t.Context(), ctr, imageRef(0)); err != nil {
		t.Errorf("after all: %v", err)
	}
}

// prepare makes what a machine of a cluster has: containerd, which is told of its directory.
func (m *machine) prepare(t *testing.T) {
	t.Helper()
	for name, text := range map[string]string{
		"config.toml":                 "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
		"certs.d/_default/hosts.toml": before,
	} {
		file := filepath.Join(m.root, "etc/containerd", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	m.startContainerd(t)
}

func (m *machine) hosts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, "etc/containerd/certs.d/_default/hosts.toml"))
	return string(must(t, text, err))
}

// startDaemonSet starts a pod on each machine, and waits until all know of each other.
func (l *lab) startDaemonSet(t *testing.T, objects []object) []*pod {
	t.Helper()
	var pods []*pod
	set := one(t, objects, "DaemonSet", "granary")
	for i, m := range l.machines {
		p := l.newPod(t, m, fmt.Sprintf("granary-%d", i), set.Spec.Template, objects)
		p.start(t)
		pods = append(pods, p)
	}
	for _, p := range pods {
		p.ready(t)
		if text := p.host.hosts(t); !strings.Contains(text, `"http://127.0.0.1:5050"`) || !strings.Contains(text, "# ours") {
			t.Errorf("containerd is not configured, or has lost what was there:\n%s", text)
		}
	}
	for _, p := range pods {
		p.meets(t, len(pods))
	}
	return pods
}

// nodeStatus asks a node as an operator would.
func (p *pod) nodeStatus(t *testing.T) (s node.Status) {
	t.Helper()
	out, err := p.exec("/granary", "status", "--json")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := jsonInto([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// meets waits until a node knows of so many members.
func (p *pod) meets(t *testing.T, n int) {
	t.Helper()
	programs.Eventually(t, fmt.Sprintf("%s knows of %d members", p.name, n), func() bool {
		up := 0
		for _, m := range p.nodeStatus(t).Cluster.Members {
			if m.State == "up" || m.State == "self" {
				up++
			}
		}
		return up == n
	})
}

// pullsCross pulls a cold image on all machines at once.
func (l *lab) pullsCross(t *testing.T, ctr string, pods []*pod) {
	t.Helper()
	var pulls sync.WaitGroup
	for _, m := range l.machines {
		pulls.Go(func() {
			if err := m.pull(t.Context(), ctr, imageRef(0)); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	if n := l.registry.sentTo("containerd"); n != 0 {
		t.Errorf("containerd has got %d bytes past the mirror", n)
	}
	const size = layersOfImage * layerSize
	if n := l.registry.sentTo("granary"); n < size || n > size*11/10 {
		t.Errorf("%d bytes have left the registry, want about %d, once", n, size)
	}
	var moved int64
	for _, p := range pods {
		moved += p.nodeStatus(t).Cluster.Received
	}
	if moved < 2*size*9/10 {
		t.Errorf("nodes have got %d bytes from each other, want about %d", moved, 2*size)
	}
}

// isConfined looks at the process itself.
func (l *lab) isConfined(t *testing.T, p *pod) {
	t.Helper()
	status := p.status(t)
	for _, want := range []string{"Uid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(status, want) {
			t.Errorf("the node's process has not %q:\n%s", want, status)
		}
	}
	info, err := os.Stat(filepath.Join(p.host.root, "var/lib/granary"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory has mode %v: %v", info.Mode(), err)
	}
	if log, err := os.ReadFile(p.main.log); err != nil || strings.Contains(string(log), "permission denied") {
		t.Errorf("the node may not read what it is to: %v\n%s", err, log)
	}
	if s := p.nodeStatus(t); s.Degraded != "" || s.Store.Bytes == 0 {
		t.Errorf("the store is not used: %+v", s)
	}
}

// upgrade replaces the pods one by one, while all machines pull.
func (l *lab) upgrade(t *testing.T, ctr string, pods []*pod, objects []object) []*pod {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var pulls atomic.Int64
	for i, m := range l.machines {
		clients.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				if err := m.pullAnew(ctr, imageRef(1+n%(maxImages-1))); err != nil {
					t.Error(err)
				}
				pulls.Add(1)
			}
		})
	}
	set := one(t, objects, "DaemonSet", "granary")
	var upgraded []*pod
	for _, old := range pods {
		old.stop(t)
		p := l.newPod(t, old.host, old.name+"-new", set.Spec.Template, objects)
		p.start(t)
		p.ready(t)
		time.Sleep(time.Duration(set.Spec.MinReadySeconds) * time.Second)
		upgraded = append(upgraded, p)
	}
	for _, p := range upgraded {
		p.meets(t, len(pods))
	}
	cancel()
	clients.Wait()
	t.Logf("%d pulls while pods were replaced", pulls.Load())
	for _, p := range upgraded {
		if out, err := p.exec("/granary", "config", "--config=/etc/granary/config/config.yaml"); err != nil {
			t.Errorf("%s: %v: %s", p.name, err, out)
		}
	}
	return upgraded
}

// pullAnew pulls an image of which containerd then has nothing again.
func (m *machine) pullAnew(ctr, ref string) error {
	// A pull that was begun is finished when the test has seen enough.
	err := m.pull(context.Background(), ctr, ref)
	_, rerr := run(nil, ctr, "--address", m.socket, "images", "rm", "--sync", ref)
	return errors.Join(err, rerr)
}

// uninstall runs the chart's hooks, in the order of their weights.
func (l *lab) uninstall(t *testing.T, objects []object) {
	t.Helper()
	set, job := one(t, objects, "DaemonSet", "granary-undo"), one(t, objects, "Job", "granary-undo")
	for i, m := range l.machines {
		p := l.newPod(t, m, fmt.Sprintf("undo-%d", i), set.Spec.Template, objects)
		p.start(t)
		l.setReady(p) // it has no probe: it is ready when it has started
		defer p.stop(t)
	}
	p := l.newPod(t, l.machines[0], "undo-wait", job.Spec.Template, objects)
	wait := p.spec.Containers[0]
	wait.Args = append(wait.Args, "--after=0s") // this DNS server keeps nothing
	out, err := p.end(t, wait)
	if err != nil || !strings.Contains(out, "3 of 3") {
		t.Errorf("the hook's job: %v: %s", err, out)
	}
	for _, m := range l.machines {
		if text := m.hosts(t); text != before {
			t.Errorf("hosts.toml is not what it was:\n%s", text)
		}
	}
}

// TestSnapshotterPod: what the privileged pod mounts, the machine sees.
func TestSnapshotterPod(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		missing(t, "/dev/fuse")
	}
	objects := render(t, "--values", "testdata/values/snapshotter.yaml", "--set", "upstreams.10\\.209\\.0\\.1:5000=http://"+outsideAddress+":5000", "--set", "containerd.configure=false")
	l := newLab(t, 1)
	l.know(objects)
	m := l.machines[0]
	data := filepath.Join(m.root, "var/lib/granary")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	// A directory of a node is on a file system whose mounts are shared.
	commands(t, "mount --bind "+data+" "+data, "mount --make-rshared "+data)
	t.Cleanup(func() { commands(t, "umount -R "+data) })
	p := l.newPod(t, m, "granary-0", one(t, objects, "DaemonSet", "granary").Spec.Template, objects)
	p.start(t)
	p.ready(t)
	defer p.stop(t)
	if _, err := os.Stat(filepath.Join(m.root, "run/granary/snapshotter.sock")); err != nil {
		t.Error(err)
	}
	const dir = "/var/lib/granary/mounted"
	if err := os.Mkdir(filepath.Join(m.root, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	mount := startProcess(t, l.runc("exec", p.mainID, "/granary", "mount", outsideAddress+":5000/app:files", dir))
	programs.Eventually(t, "the machine sees the mount", func() bool {
		text, err := os.ReadFile(filepath.Join(m.root, dir, "hello"))
		return err == nil && string(text) == "world"
	})
	_ = mount.cmd.Process.Signal(syscall.SIGTERM)
	_ = mount.wait()
}
