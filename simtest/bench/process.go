package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// process is a program under measurement.
type process struct {
	cmd *exec.Cmd
	url string // of its registry or web server
	log string
}

// start runs a program and waits until it answers at url. In a namespace, args
// begin with those of ip netns exec, and ready asks from within.
func (l *lab) start(ctx context.Context, url string, args ...string) (*process, error) {
	logFile, err := os.CreateTemp(l.dir, filepath.Base(args[0])+"-*.log")
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	p := &process{cmd: exec.Command(args[0], args[1:]...), url: url, log: logFile.Name()}
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	l.processes = append(l.processes, p)
	if url == "" {
		return p, nil
	}
	for range 200 {
		if answers(ctx, url) {
			return p, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	out, _ := os.ReadFile(p.log)
	return nil, fmt.Errorf("%s does not answer at %s:\n%s", args[0], url, out)
}

// startAt runs a program that serves at an address, and answers at a path.
func (l *lab) startAt(ctx context.Context, address, path string, args ...string) (*process, error) {
	p, err := l.start(ctx, "http://"+address+path, args...)
	if err == nil {
		p.url = "http://" + address
	}
	return p, err
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return true
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}

// cpu returns the CPU seconds that the process and its children have used.
func (p *process) cpu() float64 {
	total := cpuOf(p.cmd.Process.Pid)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.cmd.Process.Pid, p.cmd.Process.Pid))
	for _, pid := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(pid); err == nil {
			total += cpuOf(n)
		}
	}
	return total
}

// cpuOf reads user and system time from /proc/PID/stat (proc(5)), in ticks of
// 10 ms.
func cpuOf(pid int) float64 {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(p[bytes.LastIndexByte(p, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
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
	return 0, errors.New("no VmHWM")
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
