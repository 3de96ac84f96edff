package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// target is whom a client asks, and from where.
type target struct {
	space *space
	url   string
}

// pull is a crowd of clients that begin together.
type pull struct {
	image   *image
	clients []*client
	cancel  context.CancelFunc
}

type client struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
	where  string
}

// preparePull starts a client for each target; all are ready when it returns.
// Clients that are not through when ctx ends are killed.
func preparePull(ctx context.Context, img *image, targets ...target) (*pull, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &pull{image: img, cancel: cancel}
	for _, t := range targets {
		args := t.space.In(self, "fetch", t.url, img.Name, string(img.Digest))
		c := &client{cmd: exec.CommandContext(ctx, args[0], args[1:]...), where: t.space.Name}
		c.cmd.Stderr = &c.stderr
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		stdout, err1 := c.cmd.StdoutPipe()
		var err2 error
		c.stdin, err2 = c.cmd.StdinPipe()
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("client: %v, %v", err1, err2)
		}
		c.stdout = bufio.NewReader(stdout)
		if err := c.cmd.Start(); err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		p.clients = append(p.clients, c)
	}
	for _, c := range p.clients {
		if line, err := c.stdout.ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
			cancel()
			return nil, fmt.Errorf("client in %s: %q: %v: %s", c.where, line, err, c.stderr.String())
		}
	}
	return p, nil
}

// begin lets all clients go.
func (p *pull) begin() {
	for _, c := range p.clients {
		_, _ = c.stdin.Write([]byte("\n"))
	}
}

// wait returns what became of the clients, in the order of the targets.
func (p *pull) wait() []outcome { return p.waitBut(-1) }

// waitBut waits for all clients but one, which may have nothing to wait for any
// more and is then killed.
func (p *pull) waitBut(one int) []outcome {
	defer p.cancel()
	all := make([]outcome, len(p.clients))
	for i, c := range p.clients {
		if i != one {
			all[i] = c.wait(p.image)
		}
	}
	if one >= 0 {
		p.cancel()
		_ = p.clients[one].cmd.Wait()
	}
	return all
}

func (c *client) wait(img *image) (o outcome) {
	line, err := c.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &o)
	}
	ended := c.cmd.Wait()
	switch {
	case err != nil:
		o.Error = fmt.Sprintf("it did not end in time: %v: %s", ended, c.stderr.String())
	case o.Error == "" && o.Bytes != img.size():
		o.Error = fmt.Sprintf("%d bytes, want %d", o.Bytes, img.size())
	}
	if o.Error != "" {
		o.Error = "client in " + c.where + ": " + o.Error
	}
	return o
}

// pullNow runs a crowd of clients to their end.
func pullNow(ctx context.Context, img *image, targets ...target) ([]outcome, error) {
	p, err := preparePull(ctx, img, targets...)
	if err != nil {
		return nil, err
	}
	p.begin()
	return p.wait(), nil
}
