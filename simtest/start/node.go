package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/netns"
)

// node is a granary on its machine.
type node struct {
	*netns.Process
	lab    *lab
	space  *netns.Space
	data   string
	client *http.Client
}

const adminURL = "http://127.0.0.1:5051"

// startNode starts a node on machine i with what is in a data directory; "" is a new one.
func (l *lab) startNode(ctx context.Context, i int, data string, more ...string) (n *node, err error) {
	if data == "" {
		if data, err = os.MkdirTemp(l.dir, "data-"); err != nil {
			return nil, err
		}
	}
	s := l.net.nodes[i]
	n = &node{lab: l, space: s, data: data, client: s.Client()}
	args := append([]string{l.granary, "serve", "--data-dir", data, "--listen", "127.0.0.1:5050", "--admin", "127.0.0.1:5051", "--cache-size", "8GiB",
		"--upstream", registryHost + "=http://" + l.registry.address(), "--default-upstream", registryHost, "--log-level", l.logLevel}, more...)
	if n.Process, err = netns.Start(l.logFile(fmt.Sprint("node", i+1)), s, args...); err != nil {
		return nil, err
	}
	if err := n.Ready(ctx, func() bool { return netns.Answers(ctx, n.client, adminURL+"/readyz") }); err != nil {
		n.end()
		return nil, err
	}
	return n, nil
}

// end ends the node, and removes what it has stored.
func (n *node) end() {
	n.Stop()
	_ = os.RemoveAll(n.data)
}

// startMember starts a member of a cluster on machine i.
func (l *lab) startMember(ctx context.Context, i int) (*node, error) {
	s := l.net.nodes[i]
	flags := []string{"--p2p-listen", "/ip4/" + s.Address + "/tcp/5052", "--gossip-listen", s.Address + ":5053", "--advertise", s.Address, "--cluster-secret-file", l.secret}
	for _, other := range l.net.nodes[:i] {
		flags = append(flags, "--join", other.Address+":5053")
	}
	return l.startNode(ctx, i, "", flags...)
}

// startCluster starts a member on each machine, and waits until they know each other.
func (l *lab) startCluster(ctx context.Context) (nodes []*node, end func(), err error) {
	end = func() {
		for _, n := range nodes {
			n.end()
		}
	}
	for i := range l.net.nodes {
		n, err := l.startMember(ctx, i)
		if err != nil {
			return nil, end, err
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		err := n.Ready(ctx, func() bool { return n.metric(ctx, "granary_members", `state="up"`) == float64(len(nodes)-1) })
		if err != nil {
			return nil, end, err
		}
	}
	return nodes, end, pause(ctx, 2*time.Second) // until they have probed each other
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// granary runs a command through the node.
func (n *node) granary(ctx context.Context, command string, args ...string) error {
	args = n.space.In(append([]string{n.lab.granary, command, "--node", adminURL, "--default-upstream", registryHost}, args...)...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("granary %s: %w: %s", command, err, out[max(0, len(out)-1000):])
	}
	return nil
}

// metric sums the values of a metric whose labels contain match. It is 0 if the node does
// not answer.
func (n *node) metric(ctx context.Context, name, match string) (sum float64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, adminURL+"/metrics", nil)
	if err != nil {
		return 0
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		labels, value, _ := strings.Cut(lines.Text(), " ")
		if family, _, _ := strings.Cut(labels, "{"); family == name && strings.Contains(labels, match) {
			v, _ := strconv.ParseFloat(value, 64)
			sum += v
		}
	}
	return sum
}

// mount is an image that is mounted through a node.
type mount struct {
	*exec.Cmd
	dir  string
	said *strings.Builder // after it was mounted; whole once it has ended
	done chan error
}

// mount mounts an image, and returns when it is.
func (n *node) mount(ctx context.Context, image string, more ...string) (m *mount, err error) {
	m = &mount{said: new(strings.Builder), done: make(chan error, 1)}
	if m.dir, err = os.MkdirTemp(n.lab.dir, "mount-"); err != nil {
		return nil, err
	}
	args := append([]string{n.lab.granary, "mount", "--node", adminURL, "--default-upstream", registryHost}, more...)
	args = n.space.In(append(args, image+":"+tag, m.dir)...)
	log, err := os.OpenFile(n.lab.logFile("mount"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m.Cmd = exec.Command(args[0], args[1:]...)
	m.Stderr = log
	m.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	out, err := m.StdoutPipe()
	if err == nil {
		err = m.Start()
	}
	if err != nil {
		return nil, err
	}
	is := make(chan bool)
	go m.follow(out, is)
	select {
	case ok := <-is:
		if !ok {
			err = errors.New("it has ended; see " + log.Name())
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("granary mount %s: %w", image, errors.Join(err, m.end()))
	}
	return m, nil
}

// follow reads what the program says, and tells when the image is mounted.
func (m *mount) follow(out io.Reader, is chan<- bool) {
	lines := bufio.NewScanner(out)
	told := false
	for lines.Scan() {
		if !told && strings.Contains(lines.Text(), ": mounted at ") {
			told = true
			is <- true
			continue
		}
		m.said.WriteString(lines.Text() + "\n")
	}
	close(is)
	m.done <- m.Wait()
}

// end unmounts the image.
func (m *mount) end() error {
	_ = m.Process.Signal(syscall.SIGTERM)
	var err error
	select {
	case err = <-m.done:
	case <-time.After(20 * time.Second):
		_ = unix.Unmount(m.dir, unix.MNT_DETACH)
		_ = m.Process.Kill()
		err = errors.Join(errors.New("it does not end"), <-m.done)
	}
	return errors.Join(err, os.Remove(m.dir))
}

// run runs a command in a directory as its root, and checks what it prints.
func (c command) run(ctx context.Context, root string) error {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, c.args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "LANG=C.UTF-8"}
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(c.args[0]), err, said.String())
	}
	if string(out) != c.prints {
		return fmt.Errorf("%s printed %q, want %q", c.name, out, c.prints)
	}
	return nil
}
