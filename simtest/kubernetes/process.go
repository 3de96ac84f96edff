package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a daemon. What it prints is in a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// start starts a daemon with a name; prepare may change how.
func (l *lab) start(name string, args []string, prepare ...func(*exec.Cmd)) (*process, error) {
	p := &process{name: name, log: filepath.Join(l.dir, "logs", name+".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = l.env()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// Of a group of its own: an interrupt from the terminal is for this program, which ends the others in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	for _, f := range prepare {
		f(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.processes = append(l.processes, p)
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

// ended reports whether the process has ended.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end ends the process, by force if it does not go within 20 seconds.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// until waits for something to become true, for as long as the processes that it takes live.
func until(ctx context.Context, limit time.Duration, what string, is func() error, of ...*process) error {
	for deadline := time.Now().Add(limit); ; {
		err := is()
		if err == nil {
			return nil
		}
		for _, p := range of {
			if p.ended() {
				out, _ := os.ReadFile(p.log)
				return fmt.Errorf("%s has ended:\n%s", p.name, out[max(0, len(out)-4000):])
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("%s: not within %v: %w", what, limit, err))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// commands runs lines, without a shell.
func commands(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		args := strings.Fields(line)
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}
