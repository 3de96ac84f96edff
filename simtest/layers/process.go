package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that runs until it is ended.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended bool
}

// start starts a program, and waits until it answers at url.
func (l *lab) start(ctx context.Context, url, name string, args ...string) (*process, error) {
	p, err := l.begin(name, args...)
	if err != nil {
		return nil, err
	}
	for range 600 {
		if answers(ctx, url) {
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s does not answer at %s:\n%s", name, url, p.output())
}

// begin starts a program.
func (l *lab) begin(name string, args ...string) (*process, error) {
	log, err := os.CreateTemp(l.dir, filepath.Base(name)+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{cmd: exec.Command(name, args...), log: log.Name()}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, p)
	return p, nil
}

func answers(ctx context.Context, url string) bool {
	resp, err := get(ctx, url, nil)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func get(ctx context.Context, url string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return http.DefaultClient.Do(req)
}

// output is the end of what a process has said.
func (p *process) output() string {
	out, _ := os.ReadFile(p.log)
	return string(out[max(0, len(out)-8000):])
}

// end ends a process with SIGTERM, or else kills it. One that dies of SIGTERM has
// ended well.
func (p *process) end() error {
	if p.ended {
		return nil
	}
	p.ended = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(40*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

// peak returns the most memory that the process has had resident, in bytes.
func (p *process) peak() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmHWM", p.cmd.Process.Pid)
}

// freeAddress returns an address of loopback that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// node is a granary that serves.
type node struct {
	*process
	lab    *lab
	url    string // of its registry
	admin  string
	gossip string // "" without a cluster
}

// startNode starts a node with an empty store.
func (l *lab) startNode(ctx context.Context, more ...string) (*node, error) {
	listen, err1 := freeAddress()
	admin, err2 := freeAddress()
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("%w, %w", err1, err2)
	}
	n := &node{lab: l, url: "http://" + listen, admin: "http://" + admin}
	data, err := os.MkdirTemp(l.dir, "node-*")
	if err != nil {
		return nil, err
	}
	args := append([]string{"serve", "--listen", listen, "--admin", admin}, l.dataFlags(data)...)
	n.process, err = l.start(ctx, n.admin+"/readyz", l.granary, append(args, more...)...)
	return n, err
}

// startMember starts a node of a cluster, which others may belong to already.
func (l *lab) startMember(ctx context.Context, secretFile string, others ...*node) (*node, error) {
	p2p, err1 := freeAddress()
	gossip, err2 := freeAddress()
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("%w, %w", err1, err2)
	}
	flags := []string{"--cluster-secret-file", secretFile, "--p2p-listen", "/ip4/127.0.0.1/tcp/" + p2p[strings.LastIndex(p2p, ":")+1:], "--gossip-listen", gossip}
	for _, o := range others {
		flags = append(flags, "--join", o.gossip)
	}
	n, err := l.startNode(ctx, flags...)
	if n != nil {
		n.gossip = gossip
	}
	return n, err
}

// dataFlags tell a node where its store and the registry are.
func (l *lab) dataFlags(dir string) []string {
	return []string{
		"--data-dir", dir, "--cache-size", "8GiB", "--default-upstream", registryHost,
		"--upstream", registryHost + "=http://" + l.registry.gate.address,
	}
}

// run runs a command of granary through a node, and returns what it prints.
func (n *node) run(ctx context.Context, command string, args ...string) ([]byte, error) {
	return n.lab.run(ctx, append([]string{command, "--node", n.admin, "--default-upstream", registryHost}, args...)...)
}

// runAlone runs a command of granary with a node of its own, and an empty store.
func (l *lab) runAlone(ctx context.Context, command string, args ...string) ([]byte, error) {
	data, err := os.MkdirTemp(l.dir, "alone-*")
	if err != nil {
		return nil, err
	}
	flags := append([]string{command, "--node", "http://127.0.0.1:1"}, l.dataFlags(data)...)
	return l.run(ctx, append(flags, args...)...)
}

func (l *lab) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, l.granary, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("granary %s: %w: %s", strings.Join(args, " "), err, said.Bytes())
	}
	return out.Bytes(), nil
}

// layer returns the URL of what a node answers about a layer: a path below _granary.
func (n *node) layer(repository, path, query string) string {
	return n.url + "/v2/" + repository + "/_granary/" + path + "?" + query
}

// fetch gets a URL, whose answer has to be a content.
func fetch(ctx context.Context, url string) ([]byte, http.Header, error) {
	resp, err := get(ctx, url, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.500s", url, resp.Status, p)
	}
	return p, resp.Header, err
}
