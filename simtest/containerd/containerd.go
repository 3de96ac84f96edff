// Package containerd starts containerds that have nothing, on machines of package netns, and the snapshotter for
// eStargz beside them. It takes root, and what simtest/e2e/install.sh puts into $GRANARY_TOOLS.
package containerd

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

// Config says where a daemon runs.
type Config struct {
	Space *netns.Space
	Dir   string                   // of all that it stores and mounts, in a folder of its own
	Log   func(name string) string // the file for what a program prints
}

// Daemon is a containerd with nothing in it.
type Daemon struct {
	*netns.Process
	Snapshotter string

	cfg    Config
	dir    string
	socket string
	beside *netns.Process // the snapshotter, if it is one
}

// Start starts a containerd that unpacks layers.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	d := &Daemon{cfg: cfg, Snapshotter: "overlayfs"}
	return d, d.started(d.start(ctx, ""))
}

// StartStargz starts a containerd whose images are mounted by the snapshotter for eStargz, with its own settings,
// from the registry at an address, by plain HTTP.
func StartStargz(ctx context.Context, cfg Config, registry string) (*Daemon, error) {
	d := &Daemon{cfg: cfg, Snapshotter: "stargz"}
	return d, d.started(d.startStargz(ctx, registry))
}

// started ends what runs of a daemon that has not been started.
func (d *Daemon) started(err error) error {
	if err != nil {
		d.End()
	}
	return err
}

// start starts containerd; more is added to its configuration.
func (d *Daemon) start(ctx context.Context, more string) error {
	program, err := netns.Tool("containerd")
	if err == nil {
		err = d.makeDir()
	}
	if err != nil {
		return err
	}
	d.socket = filepath.Join(d.dir, "c.sock")
	config := filepath.Join(d.dir, "config.toml")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri']\n"+
		"[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n%s\n", d.dir+"/root", d.dir+"/state", d.socket, d.socket+".ttrpc", more)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	if d.Process, err = netns.Start(d.cfg.Log("containerd"), d.cfg.Space, program, "-c", config); err != nil {
		return err
	}
	return d.Ready(ctx, func() bool { return d.ctr(ctx, "version") == nil })
}

func (d *Daemon) makeDir() (err error) {
	if d.dir == "" {
		d.dir, err = os.MkdirTemp(d.cfg.Dir, "containerd-")
	}
	return err
}

func (d *Daemon) startStargz(ctx context.Context, registry string) error {
	program, err := netns.Tool("containerd-stargz-grpc")
	if err == nil {
		err = d.makeDir()
	}
	if err != nil {
		return err
	}
	socket, root, config := filepath.Join(d.dir, "s.sock"), filepath.Join(d.dir, "stargz"), filepath.Join(d.dir, "stargz.json")
	text := fmt.Sprintf(`{"resolver": {"host": {%[1]q: {"mirrors": [{"host": %[1]q, "insecure": true}]}}}}`, registry)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	if d.beside, err = netns.Start(d.cfg.Log("stargz"), d.cfg.Space, program, socket, root, config); err != nil {
		return err
	}
	if err := d.beside.Ready(ctx, func() bool { _, err := os.Stat(socket); return err == nil }); err != nil {
		return err
	}
	return d.start(ctx, fmt.Sprintf("[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = %q\n[proxy_plugins.stargz.exports]\nroot = %q\nenable_remote_snapshot_annotations = 'true'\n"+
		"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = %q\nsnapshotter = 'stargz'\n", socket, root, platform))
}

// ctr runs a command of containerd's client.
func (d *Daemon) ctr(ctx context.Context, args ...string) error {
	program, err := netns.Tool("ctr")
	if err != nil {
		return err
	}
	line := d.cfg.Space.In(append([]string{program, "-a", d.socket}, args...)...)
	if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %v: %w: %s", args, err, out[max(0, len(out)-1000):])
	}
	return nil
}

// Mount pulls an image by plain HTTP, as a runtime does, and mounts what has become of it. It is unmounted by End.
func (d *Daemon) Mount(ctx context.Context, name string) (root string, err error) {
	if root, err = os.MkdirTemp(d.dir, "root-"); err != nil {
		return "", err
	}
	if err := d.ctr(ctx, "image", "pull", "--plain-http", "--platform", platform, "--snapshotter", d.Snapshotter, name); err != nil {
		return "", err
	}
	return root, d.ctr(ctx, "image", "mount", "--platform", platform, "--snapshotter", d.Snapshotter, name, root)
}

// End ends the daemon and the snapshotter, and removes what they have stored.
func (d *Daemon) End() {
	for _, p := range []*netns.Process{d.Process, d.beside} {
		if p != nil {
			p.Stop()
		}
	}
	if d.dir != "" {
		netns.UnmountBelow(d.dir)
		_ = os.RemoveAll(d.dir)
	}
}
