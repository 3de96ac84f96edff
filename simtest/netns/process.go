package netns

import (
	"bytes"
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

// Process is a program that runs on a machine until it is ended. What it prints is in a
// file.
type Process struct {
	Name string // of its log, without .log
	Log  string // the file
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// Start starts a program on a machine, nil for the caller's own; a log that is there grows. It is
// killed with the thread that has started it, and so with its process.
func Start(log string, s *Space, args ...string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	args = s.In(args...)
	p := &Process{Name: strings.TrimSuffix(filepath.Base(log), ".log"), Log: log, cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

// Alive reports whether the process has not ended.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Ready waits until the process is, for a minute.
func (p *Process) Ready(ctx context.Context, is func() bool) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if is() {
			return nil
		}
		if !p.Alive() || ctx.Err() != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(ctx.Err(), fmt.Errorf("%s is not ready:\n%s", p.Name, p.Output()))
}

// Output is the end of what the process has printed.
func (p *Process) Output() string {
	out, _ := os.ReadFile(p.Log)
	return string(out[max(0, len(out)-4000):])
}

// CPU returns the CPU seconds, of user and system, that the process has used.
func (p *Process) CPU() float64 {
	if !p.Alive() {
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

// Peak returns the most memory that the process has had resident, in bytes, or 0 if it has ended.
func (p *Process) Peak() int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// Signal sends a signal to a process that has not ended.
func (p *Process) Signal(s syscall.Signal) {
	if p.Alive() {
		_ = p.cmd.Process.Signal(s)
	}
}

// Stop ends the process, by force if it does not go within 20 seconds.
func (p *Process) Stop() { p.StopWithin(20 * time.Second) }

// StopWithin ends the process, which may be stopped, and reports whether force was needed, after the grace.
func (p *Process) StopWithin(grace time.Duration) (forced bool) {
	p.Signal(syscall.SIGTERM)
	p.Signal(syscall.SIGCONT)
	select {
	case <-p.done:
		return false
	case <-time.After(grace):
		p.Kill()
		return true
	}
}

// Kill ends the process by SIGKILL, and waits for its end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}
