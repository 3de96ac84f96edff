package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/granary-oci/granary/simtest/netns"
)

const platform = "linux/" + runtime.GOARCH

// daemon is a containerd with nothing in it.
type daemon struct {
	*netns.Process
	lab    *lab
	space  *netns.Space
	dir    string
	socket string
}

// startContainerd starts a containerd on a machine; more is added to its configuration.
func (l *lab) startContainerd(ctx context.Context, s *netns.Space, more ...string) (d *daemon, err error) {
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
	if d.Process, err = netns.Start(l.logFile("containerd"), s, program, "-c", config); err != nil {
		return nil, err
	}
	if err := d.Ready(ctx, func() bool { return d.ctr(ctx, "version") == nil }); err != nil {
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
	line := d.space.In(append([]string{program, "-a", d.socket}, args...)...)
	if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %v: %w: %s", args, err, out[max(0, len(out)-1000):])
	}
	return nil
}

// end ends the daemon, and removes what it has stored.
func (d *daemon) end() {
	d.Stop()
	unmountBelow(d.dir)
	_ = os.RemoveAll(d.dir)
}

// pullAndRun has containerd pull an image from the registry, mount what it has made of it,
// and runs the command there: what a runtime does, but for the container's own isolation.
func (d *daemon) pullAndRun(ctx context.Context, img *image, c command, snapshotter string) ([]measured, error) {
	root, err := os.MkdirTemp(d.dir, "root-")
	if err != nil {
		return nil, err
	}
	name := d.lab.registry.address() + "/" + img.Format + ":" + tag
	w := d.lab.watch()
	if err := d.ctr(ctx, "image", "pull", "--plain-http", "--platform", platform, "--snapshotter", snapshotter, name); err != nil {
		return nil, err
	}
	if err := d.ctr(ctx, "image", "mount", "--platform", platform, "--snapshotter", snapshotter, name, root); err != nil {
		return nil, err
	}
	w.mounted()
	if err := c.run(ctx, root); err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	return []measured{{outcome: w.stop()}}, nil
}

// fullPull has containerd pull and unpack the image from the registry.
func fullPull(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	d, err := l.startContainerd(ctx, l.net.nodes[0])
	if err != nil {
		return nil, err
	}
	defer d.end()
	return d.pullAndRun(ctx, img, c, "overlayfs")
}

// bySnapshotter has containerd's snapshotter for eStargz mount the image.
func bySnapshotter(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	program, err := tool("containerd-stargz-grpc")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(l.dir, "stargz-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	defer unmountBelow(dir)
	socket, config := filepath.Join(dir, "s.sock"), filepath.Join(dir, "config.json")
	text := fmt.Sprintf(`{"resolver": {"host": {%[1]q: {"mirrors": [{"host": %[1]q, "insecure": true}]}}}}`, l.registry.address())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	s := l.net.nodes[0]
	p, err := netns.Start(l.logFile("stargz"), s, program, socket, dir+"/root", config)
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	if err := p.Ready(ctx, func() bool { _, err := os.Stat(socket); return err == nil }); err != nil {
		return nil, err
	}
	d, err := l.startContainerd(ctx, s, fmt.Sprintf("[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = %q\n[proxy_plugins.stargz.exports]\nroot = %q\nenable_remote_snapshot_annotations = 'true'\n"+
		"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = %q\nsnapshotter = 'stargz'\n", socket, dir+"/root", platform))
	if err != nil {
		return nil, err
	}
	defer d.end()
	return d.pullAndRun(ctx, img, c, "stargz")
}
