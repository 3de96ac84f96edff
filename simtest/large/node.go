package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// asNode is the variable with the settings, in JSON, of a process that is to be a node.
const asNode = "GRANARY_LARGE_NODE"

// process is a node in a process of its own, which is this program again.
type process struct {
	settings
	cmd    *exec.Cmd
	url    string // of its registry
	admin  string
	gossip string
}

// settings are what nodes differ in.
type settings struct {
	Data     string // directory
	Registry string // URL
	Secret   string // file with the secret of a cluster; "" for a node alone
	Join     string // another member
}

// config returns settings that make a node keep all that it can.
func (s settings) config() node.Config {
	cfg := node.Config{
		DataConfig: node.DataConfig{
			DataDir: s.Data, CacheSize: 1 << 40, Upstream: map[string]string{host: s.Registry}, DefaultUpstream: host,
		},
		ListenConfig: node.ListenConfig{Listen: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0", DrainTimeout: 5 * time.Second},
	}
	if s.Secret == "" {
		return cfg
	}
	cfg.ClusterConfig = node.ClusterConfig{P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", ClusterSecretFile: s.Secret, Weight: 10}
	if s.Join != "" {
		cfg.Join = []string{s.Join}
	}
	return cfg
}

// start starts a node, and returns when it serves.
func start(s settings) (*process, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{settings: s, cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), asNode+"="+string(text))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(s.Data+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stderr = log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &p.url, &p.admin, &p.gossip)
	}
	if err != nil {
		_ = p.end(syscall.SIGKILL)
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("a node does not start: %w: %s", err, said)
	}
	return p, nil
}

// serve is a node until it is told to end.
func serve(text string) error {
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	n, err := node.New(s.config(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	gossip := "-"
	if c := n.Status().Cluster; c != nil {
		gossip = c.Gossip
	}
	fmt.Println(n.URLs()[0], n.AdminURL(), gossip)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return n.Run(ctx)
}

// end ends a node with a signal.
func (p *process) end(signal syscall.Signal) error {
	_ = p.cmd.Process.Signal(signal)
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == signal {
		return nil
	}
	return err
}

func (p *process) status() (s node.Status, err error) {
	resp, err := http.Get(p.admin + "/api/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// fetch reads a model through a node, and compares its digest.
func (p *process) fetch(m *model) error {
	resp, err := http.Get(p.url + "/v2/model/blobs/" + string(m.digest))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	v := m.digest.Verifier()
	n, err := io.Copy(v, resp.Body)
	if err == nil && (n != m.size || !v.Verified()) {
		err = errors.New("wrong bytes")
	}
	if err != nil {
		return fmt.Errorf("model: %s, %d bytes: %w", resp.Status, n, err)
	}
	return nil
}

// peak returns the most memory that a node has had resident, in bytes.
func (p *process) peak() int64 {
	status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// cpu returns the CPU time that a node has used.
func (p *process) cpu() time.Duration {
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "stat"))
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // proc(5): utime and stime, in ticks of 10 ms
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
