// Package mounts has "granary mount" mount images on machines of package netns, and runs commands in what is mounted.
package mounts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/netns"
)

// Mount is an image that is mounted through a node.
type Mount struct {
	*exec.Cmd
	Dir  string
	said strings.Builder // after it was mounted; whole once it has ended
	done chan error
}

// Start mounts an image in a new directory below a given one, and returns when it is mounted. args are what
// follows "granary mount", but for that directory. What the program complains about is added to a log.
func Start(ctx context.Context, s *netns.Space, granary, below, log string, args ...string) (m *Mount, err error) {
	m = &Mount{done: make(chan error, 1)}
	if m.Dir, err = os.MkdirTemp(below, "mount-"); err != nil {
		return nil, err
	}
	args = s.In(append(append([]string{granary, "mount"}, args...), m.Dir)...)
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m.Cmd = exec.Command(args[0], args[1:]...)
	m.Stderr = f
	m.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	out, err := m.StdoutPipe()
	if err == nil {
		err = m.Cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	is := make(chan bool, 1)
	go m.follow(out, is)
	select {
	case ok := <-is:
		if !ok {
			err = errors.New("it has ended; see " + log)
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("granary mount: %w", errors.Join(err, m.End()))
	}
	return m, nil
}

// follow reads what the program says, and tells when the image is mounted.
func (m *Mount) follow(out io.Reader, is chan<- bool) {
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

// Said is what the program has said after it was mounted, once it has ended.
func (m *Mount) Said() string { return strings.TrimSpace(m.said.String()) }

// End unmounts the image.
func (m *Mount) End() error {
	_ = m.Process.Signal(syscall.SIGTERM)
	var err error
	select {
	case err = <-m.done:
	case <-time.After(20 * time.Second):
		_ = unix.Unmount(m.Dir, unix.MNT_DETACH)
		_ = m.Process.Kill()
		err = errors.Join(errors.New("it does not end"), <-m.done)
	}
	return errors.Join(err, os.Remove(m.Dir))
}

// Command is one that is run in an image.
type Command struct {
	Args   []string
	Prints string
}

// Run runs the command in a directory as its root, and checks what it prints.
func (c Command) Run(ctx context.Context, root string) error {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, c.Args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "LANG=C.UTF-8"}
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(c.Args[0]), err, said.String())
	}
	if string(out) != c.Prints {
		return fmt.Errorf("%q printed %q, want %q", c.Args, out, c.Prints)
	}
	return nil
}
