package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a daemon in a space. What it prints is in a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// inSpace gives the command line that runs args in a space: nsenter replaces itself with the
// program, so that the process is the program. "ip netns exec" would give it mounts of its own,
// and what other tests have mounted would stay as long as it runs.
func inSpace(s *space, args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + s.name, "--"}, args...)
}

// start starts a daemon; a log that is there grows.
func start(log string, s *space, args ...string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	args = inSpace(s, args...)
	p := &process{name: strings.TrimSuffix(filepath.Base(log), ".log"), cmd: exec.Command(args[0], args[1:]...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(s syscall.Signal) {
	if p.alive() {
		_ = p.cmd.Process.Signal(s)
	}
}

// stop ends the process, by force if it does not go within the grace.
func (p *process) stop(grace time.Duration) (forced bool) {
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return false
	case <-time.After(grace):
		p.kill()
		return true
	}
}

func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// cpu returns the CPU seconds, of user and system, that the process has used.
func (p *process) cpu() float64 {
	if !p.alive() {
		return (p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()).Seconds()
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // proc(5): utime and stime, in ticks of 10 ms
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

// peak returns the most memory that the process has had resident, in bytes, or 0
// if it has ended.
func (p *process) peak() int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// busyTicks returns how long the machine's CPUs have worked, and how long they
// have been there, in ticks since boot (proc(5), /proc/stat).
func busyTicks() (busy, all float64) {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(line) {
		if i == 0 || i > 8 { // "cpu", and the time of guests, which is user time too
			continue
		}
		v, _ := strconv.ParseFloat(field, 64)
		all += v
		if i != 4 && i != 5 { // idle and iowait
			busy += v
		}
	}
	return busy, all
}
