package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// lab is a cluster, with a registry beside it.
type lab struct {
	dir       string // of all that a run makes
	net       *network
	authority *authority
	nodes     []*node
	registry  *registry
	processes []*process      // in the order of their start
	restore   []func()        // what is to be undone at the end, the last first
	ran       map[string]bool // commands of the pages
}

// open makes the cluster. It is to be closed, even if this fails.
func (l *lab) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(filepath.Join(l.dir, "logs"), 0o755); err != nil {
		return err
	}
	l.restore = append(l.restore, keepSettings())
	if l.net, err = newNetwork(ctx); err != nil {
		return err
	}
	if l.authority, err = newAuthority(filepath.Join(l.dir, "certificates")); err != nil {
		return err
	}
	images, err := l.buildImages(ctx)
	if err != nil {
		return err
	}
	if err := l.startControlPlane(ctx); err != nil {
		return err
	}
	if err := l.startRegistry(ctx); err != nil {
		return err
	}
	for i := range nodeCount {
		n, err := l.startNode(ctx, i, images)
		if err != nil {
			return err
		}
		l.nodes = append(l.nodes, n)
	}
	return until(ctx, 3*time.Minute, "the nodes are ready", func() error {
		return l.quiet(ctx, fmt.Sprintf("test $(kubectl get nodes | grep -cw Ready) = %d", nodeCount))
	}, l.processes...)
}

// close ends all that was started. Of a run that has failed it leaves the logs.
func (l *lab) close(failed bool) error {
	for _, p := range slices.Backward(l.processes) {
		p.end()
	}
	for _, undo := range slices.Backward(l.restore) {
		undo()
	}
	if l.net != nil {
		l.net.close()
	}
	if !failed {
		return os.RemoveAll(l.dir)
	}
	all, err := os.ReadDir(l.dir)
	for _, e := range all {
		if e.Name() != "logs" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(l.dir, e.Name())))
		}
	}
	fmt.Println("logs are in", filepath.Join(l.dir, "logs"))
	return err
}

// sweep removes what runs that were killed have left, and logs of earlier ones.
func sweep(work string) {
	for _, pattern := range []string{"/run/netns/" + namePrefix + "*", "/sys/fs/cgroup/" + namePrefix + "*", "/sys/fs/cgroup/*/" + namePrefix + "*", work + "/run-*"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			pid := regexp.MustCompile(`^(?:` + namePrefix + `|run-)(\d+)`).FindStringSubmatch(filepath.Base(name))
			if pid == nil {
				continue
			}
			switch _, err := os.Stat("/proc/" + pid[1]); {
			case !os.IsNotExist(err):
			case strings.HasPrefix(name, "/run/netns/"):
				_ = exec.Command("ip", "netns", "del", filepath.Base(name)).Run()
			case strings.HasPrefix(name, work):
				_ = os.RemoveAll(name)
			default:
				removeCgroup(name)
			}
		}
	}
}

// keepSettings remembers what a kubelet sets in the kernel, and gives what sets it back.
func keepSettings() (restore func()) {
	before := make(map[string][]byte)
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		if is, err := os.ReadFile("/proc/sys/" + name); err == nil {
			before["/proc/sys/"+name] = is
		}
	}
	return func() {
		for file, is := range before {
			_ = os.WriteFile(file, is, 0)
		}
	}
}
