package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/granary-oci/granary/simtest/lines"
	"github.com/granary-oci/granary/simtest/pages"
)

// give puts programs of $GRANARY_TOOLS on a machine that does not run yet.
func (m *machine) give(ctx context.Context, dir string, names ...string) error {
	if err := os.MkdirAll(m.changed(dir), 0o755); err != nil {
		return err
	}
	for _, name := range names {
		if err := lines.Run(ctx, "cp "+filepath.Join(m.tools, name)+" "+m.changed(filepath.Join(dir, name))); err != nil {
			return err
		}
	}
	return nil
}

// link makes a symlink on a machine that does not run yet.
func (m *machine) link(to, name string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(m.changed(name)), 0o755), os.Symlink(to, m.changed(name)))
}

// crioUnit is as CRI-O's own, in what matters here, and crioConfig has it pull into a store
// that is not podman's. It runs no pods.
const (
	crioUnit = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n" +
		"[Service]\nType=notify\nExecStart=/usr/local/bin/crio\nExecReload=/bin/kill -s HUP $MAINPID\n"
	crioConfig = "[crio]\nroot = \"/var/lib/crio/storage\"\nrunroot = \"/run/crio/storage\"\n" +
		"[crio.runtime]\npinns_path = \"/bin/true\"\ndefault_runtime = \"runc\"\n[crio.runtime.runtimes.runc]\nruntime_path = \"/usr/sbin/runc\"\n[crio.nri]\nenable_nri = false\n"
)

// giveCRIO puts CRI-O beside Docker and podman.
func (m *machine) giveCRIO(ctx context.Context) error {
	const unit = "etc/systemd/system/crio.service"
	return errors.Join(m.give(ctx, "usr/local/bin", "crio", "cri"), m.write("etc/crio/crio.conf", crioConfig), m.write(unit, crioUnit),
		m.link("/"+unit, "etc/systemd/system/multi-user.target.wants/crio.service"))
}

// giveContainerd2 puts containerd 2 in the place of Debian's, with what the README says of
// the snapshotter as its configuration. Docker of that age does not go with it.
func (m *machine) giveContainerd2(ctx context.Context) error {
	section, err := pages.Section("README.md", "Start containers before their images have arrived")
	if err != nil {
		return err
	}
	config := section.Blocks("toml")
	if len(config) != 1 {
		return fmt.Errorf("the README has %d configurations of containerd", len(config))
	}
	return errors.Join(m.give(ctx, "usr/bin", "containerd", "containerd-shim-runc-v2", "ctr"), m.write("etc/containerd/config.toml", config[0]),
		m.link("/dev/null", "etc/systemd/system/docker.service"), m.link("/dev/null", "etc/systemd/system/docker.socket"))
}
