package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

const platform = "linux/" + runtime.GOARCH

// daemon is a containerd with nothing in it.
type daemon struct {
	*process
	lab    *lab
	space  *space
	dir    string
	socket string
}

// startContainerd starts a containerd on a machine; more is added to its configuration.
func (l *lab) startContainerd(ctx context.Context, s *space, more ...string) (d *daemon, err error) {
	program, err := tool("containerd")
	if err != nil {
		return nil, err
	}
	d = &daemon{lab: l, space: s}
	if d.dir, err = os.MkdirTemp(l.dir, "containerd-"); err != nil {
		return nil, err
	}
	d.socket = filepath.Join(d.dir, "c.sock")
	config := filepath.Join(d.dir, "config.toml")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri']\n"+
		"[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", d.dir+"/root", d.dir+"/state", d.socket, d.socket+".ttrpc")
	for _, m := range more {
		text += m + "\n"
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if d.process, err = start(l.logFile("containerd"), s, program, "-c", config); err != nil {
		return nil, err
	}
	if err := d.ready(ctx, func() bool { return d.ctr(ctx, "version") == nil }); err != nil {
		d.end()
		return nil, err
	}
	return d, nil
}

// ctr runs a command of containerd's client.
func (d *daemon) ctr(ctx context.Context, args ...string) error {
	program, err := tool("ctr")
	if err != nil {
		return err
	}
	line := d.space.in(append([]string{program, "-a", d.socket}, args...)...)
	if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %v: %w: %s", args, err, out[max(0, len(out)-1000):])
	}
	return nil
}

func (d *daemon) unmount(root string) {
	_ = errors.Join(unix.Unmount(root, unix.MNT_DETACH), os.Remove(root))
}

// end ends the daemon, and removes what it has stored.
func (d *daemon) end() {
	d.stop()
	_ = os.RemoveAll(d.dir)
}
