package deploy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
)

const (
	spacePrefix    = "granary-d"
	outsideAddress = "10.209.0.1" // of the registry and the DNS server
)

// lab is a cluster of machines without a kubelet, with what a pod needs of the rest.
type lab struct {
	rootfs     string   // of the image
	entrypoint []string // of the image
	state      string   // runc's
	machines   []*machine
	registry   *registry

	mu       sync.Mutex
	services []object
	pods     map[*pod]bool     // and whether they are ready
	names    map[string]string // of other hosts, with a dot at the end, to addresses
}

// machine is a node of the cluster: a network namespace and a directory.
type machine struct {
	space, address string
	root           string
	socket         string // containerd's
}

// newLab makes so many machines, and a registry and a DNS server that they reach.
func newLab(t *testing.T, n int) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	for _, name := range []string{"ip", "runc"} {
		program(t, name)
	}
	i := buildImage(t)
	// runc makes the places that something is mounted at.
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	out, err := run(nil, "cp", "-a", i.rootfs, rootfs)
	must(t, out, err)
	l := &lab{state: t.TempDir(), rootfs: rootfs, entrypoint: i.Config.Entrypoint, pods: make(map[*pod]bool), names: make(map[string]string)}
	name := fmt.Sprintf("%s%d-", spacePrefix, os.Getpid())
	sweep()
	outside := name + "o"
	t.Cleanup(func() { deleteSpaces(name) })
	commands(t, "ip netns add "+outside,
		"ip -n "+outside+" link set lo up",
		"ip -n "+outside+" link add br0 type bridge",
		"ip -n "+outside+" addr add "+outsideAddress+"/24 dev br0",
		"ip -n "+outside+" link set br0 up")
	for i := range n {
		m := &machine{space: fmt.Sprintf("%s%d", name, i), address: fmt.Sprintf("10.209.0.%d", 11+i), root: t.TempDir()}
		l.machines = append(l.machines, m)
		commands(t, "ip netns add "+m.space,
			fmt.Sprintf("ip link add eth0 netns %s type veth peer name p%d netns %s", m.space, i, outside),
			"ip -n "+m.space+" addr add "+m.address+"/24 dev eth0",
			"ip -n "+m.space+" link set lo up",
			"ip -n "+m.space+" link set eth0 up",
			fmt.Sprintf("ip -n %s link set p%d master br0 up", outside, i))
	}
	err = within(outside, func() error { return errors.Join(l.serveDNS(t), l.serveRegistry(t)) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func commands(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		args := strings.Fields(line)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

func deleteSpaces(prefix string) {
	names, _ := filepath.Glob("/run/netns/" + prefix + "*")
	for _, name := range names {
		_ = exec.Command("ip", "netns", "del", filepath.Base(name)).Run()
	}
}

// sweep deletes the namespaces of runs that were killed.
func sweep() {
	names, _ := filepath.Glob("/run/netns/" + spacePrefix + "*")
	for _, name := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), spacePrefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			_ = exec.Command("ip", "netns", "del", filepath.Base(name)).Run()
		}
	}
}

// within runs do in a network namespace: sockets that it makes stay there. Its thread
// ends with it.
func within(space string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is of no use to others
		f, err := os.Open("/run/netns/" + space)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// know tells DNS of services.
func (l *lab) know(objects []object) {
	for _, o := range objects {
		if o.Kind == "Service" {
			l.set(func() { l.services = append(l.services, o) })
		}
	}
}

// enter tells DNS of a pod, which is not ready yet.
func (l *lab) enter(p *pod) { l.set(func() { l.pods[p] = false }) }

func (l *lab) setReady(p *pod) { l.set(func() { l.pods[p] = true }) }

func (l *lab) leave(p *pod) { l.set(func() { delete(l.pods, p) }) }

func (l *lab) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// addresses returns what a headless service stands for.
func (l *lab) addresses(name string) (found []string, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if address := l.names[name]; address != "" {
		return []string{address}, true
	}
	for _, s := range l.services {
		if name != s.Metadata.Name+"."+s.Metadata.Namespace+".svc.cluster.local." {
			continue
		}
		var selector map[string]string
		if err := jsonInto(s.Spec.Selector, &selector); err != nil {
			return nil, false
		}
		for p, ready := range l.pods {
			if (ready || s.Spec.PublishNotReadyAddresses) && matches(selector, p.labels) {
				found = append(found, p.host.address)
			}
		}
	}
	slices.Sort(found)
	return found, len(found) > 0
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// serveDNS answers for services.
func (l *lab) serveDNS(t *testing.T) error {
	conn, err := net.ListenPacket("udp", outsideAddress+":53")
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := l.answer(buf[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return nil
}

func (l *lab) answer(query []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	found, known := l.addresses(q.Name.String())
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range found {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(a).To4())},
			})
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

func (l *lab) serveRegistry(t *testing.T) error {
	listener, err := net.Listen("tcp", outsideAddress+":5000")
	if err != nil {
		return err
	}
	l.registry = newRegistry()
	server := &http.Server{Handler: l.registry}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return nil
}

// id names a container of this run.
func (l *lab) id(name string) string { return fmt.Sprintf("%s%d-%s", spacePrefix, os.Getpid(), name) }

// process is one that a test has started.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // why, then
}

// startProcess starts a command that ends with the test. If the test fails, the end of what
// it has printed is shown.
func startProcess(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: cmd, log: log.Name(), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		_ = p.wait()
		late.Stop()
		if t.Failed() {
			out, _ := os.ReadFile(p.log)
			t.Logf("end of what %s has printed:\n%s", strings.Join(cmd.Args, " "), out[max(0, len(out)-4000):])
		}
	})
	return p
}

func (p *process) wait() error {
	<-p.done
	return p.err
}

// startContainerd starts a machine's runtime.
func (m *machine) startContainerd(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "granary-d") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m.socket = filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(m.root, "var/lib/containerd"), dir+"/state", m.socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startProcess(t, exec.Command("ip", "netns", "exec", m.space, tool(t, "containerd"), "--config", config, "--log-level", "warn"))
	programs.Eventually(t, "containerd answers", func() bool {
		_, err := run(nil, tool(t, "ctr"), "--address", m.socket, "version")
		return err == nil
	})
}

// pull makes the machine's containerd fetch an image, by the files that its configuration
// is said to have.
func (m *machine) pull(ctx context.Context, ctr, ref string) error {
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", m.space, ctr, "--address", m.socket,
		"content", "fetch", "--plain-http", "--hosts-dir", filepath.Join(m.root, "etc/containerd/certs.d"), ref)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("pull of %s on %s: %w: %s", ref, m.address, err, out)
	}
	return nil
}
