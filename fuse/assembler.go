package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// assemble has another process lay the layers over each other, and returns the mount.
func (s *Stack) assemble(ctx context.Context, l *life, v *serving) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AssembleTimeout)
	defer cancel()
	a, err := s.assembly(l)
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	err = s.run(ctx, a, append([]*os.File{theirs}, v.mounts...))
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	return receive(ours)
}

// assembly returns what is to be done.
func (s *Stack) assembly(l *life) (a assembly, err error) {
	a = assembly{Work: l.path, Source: s.cfg.Source, Images: s.images != nil}
	if s.cfg.Upper != "" {
		if a.Upper, err = filepath.Abs(s.cfg.Upper); err != nil {
			return a, err
		}
	}
	for _, layer := range s.cfg.Layers {
		p := part{}
		if layer.Image != nil {
			p = part{layer.Image.Format, layer.Image.Name}
		}
		a.Layers = append(a.Layers, p)
	}
	return a, nil
}

// run runs the assembler.
func (s *Stack) run(ctx context.Context, a assembly, files []*os.File) error {
	in, err := json.Marshal(a)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, s.cfg.Assembler[0], s.cfg.Assembler[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = bytes.NewReader(in), &said, &said, files
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	switch ended, err := s.await(ctx, cmd); {
	case !ended:
		return fmt.Errorf("process %d, which mounts the layers, does not end: %w", cmd.Process.Pid, ctx.Err())
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("mounting the layers: %w", ctx.Err())
	case err != nil && said.Len() > 0:
		return errors.New(strings.TrimSpace(said.String()))
	default:
		return err
	}
}

// await waits for the assembler, which is killed when ctx ends. It may wait for a loop
// device that reads then, which nothing interrupts, and the kernel may have it for good.
func (s *Stack) await(ctx context.Context, cmd *exec.Cmd) (ended bool, err error) {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
		return true, err
	case <-ctx.Done():
	}
	s.giveUp()
	select {
	case err = <-done:
		return true, err
	case <-time.After(endPatience):
		return false, nil
	}
}

// receive returns the mount that an assembler which has ended has sent.
func receive(from *os.File) (*os.File, error) {
	p, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), p, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the mount of the layers: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err == nil && len(messages) == 1 {
		fds, err := unix.ParseUnixRights(&messages[0])
		if err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "stack"), nil
		}
	}
	return nil, errors.Join(errors.New("the mount of the layers was not sent"), err)
}
