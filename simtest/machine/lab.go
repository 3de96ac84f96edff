package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/lines"
)

// A node takes no private address for a registry's, so the machines have public ones. There
// is no way out of the namespace.
const (
	outside = "44.0.0.1"            // the registry, on the bridge
	prefix  = "granary-machine-"    // of what is to be removed at the end
	binary  = "granary-linux-amd64" // as it is released
)

// lab is the machines and what is around them.
type lab struct {
	work     string
	tools    string
	cgroup   string // what the machines' cgroups are in
	verbose  bool
	registry *registry
	one, two *machine
}

// follow makes the lab, and does there what the documents say.
func follow(ctx context.Context, work string, verbose bool) (err error) {
	l := &lab{work: work, tools: os.Getenv("GRANARY_TOOLS"), verbose: verbose}
	if err := l.spaces(ctx); err != nil {
		return err
	}
	defer l.leave()
	begun := time.Now()
	if err := l.furnish(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.each((*machine).end)) }()
	if err := l.each(func(m *machine) error { return m.boot(ctx) }); err != nil {
		return err
	}
	fmt.Printf("== two machines run, %.0f s after the start\n", time.Since(begun).Seconds())
	for _, s := range steps {
		fmt.Printf("== %s\n", s.what)
		if err := s.do(ctx, l); err != nil {
			if ctx.Err() == nil {
				l.explain()
			}
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	fmt.Printf("== all is as the pages say, after %.0f s\n", time.Since(begun).Seconds())
	return nil
}

// spaces makes what is the lab's alone: mounts, the bridge, and cgroups of version 2, which
// are Debian's, also where the system that this runs on has others.
func (l *lab) spaces(ctx context.Context) error {
	const root = "/sys/fs/cgroup"
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""))
	if err == nil {
		_ = unix.Unmount(root, unix.MNT_DETACH)
		err = unix.Mount("cgroup2", root, "cgroup2", 0, "")
	}
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	all, _ := filepath.Glob(root + "/" + prefix + "*")
	for _, name := range all {
		if _, err := os.Stat(filepath.Join(filepath.Dir(l.work), filepath.Base(name))); os.IsNotExist(err) {
			removeCgroup(name) // of a run that was killed
		}
	}
	l.cgroup = filepath.Join(root, filepath.Base(l.work))
	return errors.Join(os.Mkdir(l.cgroup, 0o755), lines.Run(ctx,
		"ip link set lo up",
		"ip link add br0 type bridge",
		"ip addr add "+outside+"/24 dev br0",
		"ip link set br0 up"))
}

// leave removes what does not end with the namespaces.
func (l *lab) leave() { removeCgroup(l.cgroup) }

// removeCgroup removes a cgroup and those in it, as far as they are empty.
func removeCgroup(name string) {
	below, _ := os.ReadDir(name)
	for _, b := range below {
		if b.IsDir() {
			removeCgroup(filepath.Join(name, b.Name()))
		}
	}
	_ = os.Remove(name)
}

// build makes the node and the Debian that the machines are made of.
func build(ctx context.Context, work string) error {
	tools := os.Getenv("GRANARY_TOOLS")
	if tools == "" {
		return errors.New("GRANARY_TOOLS is not set: run simtest/e2e/install.sh DIR, and set it to DIR")
	}
	tree, err := debian(ctx, filepath.Join(tools, "machine"))
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", filepath.Join(work, binary), "./cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return os.Symlink(tree, filepath.Join(work, "debian"))
}

// furnish makes the registry and the machines, which do not run yet.
func (l *lab) furnish(ctx context.Context) (err error) {
	if l.registry, err = startRegistry(ctx, l); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	l.one, l.two = l.newMachine("one", "44.0.0.11"), l.newMachine("two", "44.0.0.12")
	if err := l.each(func(m *machine) error { return m.lay(ctx) }); err != nil {
		return err
	}
	return errors.Join(l.one.giveCRIO(ctx), l.two.giveContainerd2(ctx))
}

// each does something with both machines at once.
func (l *lab) each(do func(*machine) error) error {
	var g errgroup.Group
	for _, m := range []*machine{l.one, l.two} {
		g.Go(func() error {
			if err := do(m); err != nil {
				return fmt.Errorf("machine %s: %w", m.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// explain prints what the machines know of their nodes.
func (l *lab) explain() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, m := range []*machine{l.one, l.two} {
		out, _ := m.run(ctx, "systemctl status --no-pager --lines=5 granary docker containerd crio; journalctl --no-pager --lines=60 --unit=granary")
		fmt.Printf("-- machine %s\n%s\n", m.name, out)
	}
}

// eventually waits, for a while, for something to become true.
func eventually(ctx context.Context, what string, is func() bool) error {
	for range 300 {
		if is() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return fmt.Errorf("never: %s", what)
}
