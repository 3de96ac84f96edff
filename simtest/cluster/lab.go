package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/netns"
)

// settings are what all rows of a run share.
type settings struct {
	Work         string        // images, logs and, unless Data is set, what nodes store
	Data         string        // where nodes store; a tmpfs leaves the disk, which they share, out of it
	Granary      string        // the binary
	Tools        string        // where crane and containerd are, see simtest/e2e/install.sh
	LogLevel     string        // of the nodes
	RegistryRate int           // Mbit/s that leave the registry
	NodeRate     int           // Mbit/s of each node, each way
	Settle       time.Duration // between the nodes' knowing each other and the first pull
	Alone        bool          // nodes know nothing of each other: to try the harness
	BytesOnly    bool          // times are not judged
}

func defaults() settings {
	return settings{
		Work: filepath.Join(os.TempDir(), "granary-cluster"), Tools: os.Getenv("GRANARY_TOOLS"), LogLevel: "info",
		RegistryRate: 200, NodeRate: 1000, Settle: 2 * time.Second,
	}
}

// lab is a registry and machines for nodes. Rows take turns in it.
type lab struct {
	settings
	net      *netns.Bridge
	registry *registry
	spaces   []*space // of the nodes
	nodes    []*node  // of this row, in the order of their start
	after    []func() // when the nodes of this row have ended
	label    string   // of this row, in names of files
	data     string
	logs     string
}

// newLab makes n machines and a registry. close must be called also when it fails.
func newLab(ctx context.Context, s settings, n int) (l *lab, err error) {
	l = &lab{settings: s, label: "setup"}
	l.logs = filepath.Join(s.Work, "logs", fmt.Sprintf("%s-%d-n%d", time.Now().Format("0102-150405"), os.Getpid(), n))
	if l.data = s.Data; l.data == "" {
		l.data = s.Work
	}
	l.data = filepath.Join(l.data, fmt.Sprintf("data-%d", os.Getpid()))
	if err := errors.Join(os.MkdirAll(l.logs, 0o755), os.MkdirAll(l.data, 0o755)); err != nil {
		return l, err
	}
	if l.net, err = netns.NewBridge(ctx, namePrefix, n+1); err != nil {
		return l, err
	}
	home, err := addSpace(ctx, l.net, "r", 1, s.RegistryRate, false)
	if err != nil {
		return l, err
	}
	for i := range n {
		s, err := addSpace(ctx, l.net, fmt.Sprint(i+1), 11+i, s.NodeRate, true)
		if err != nil {
			return l, err
		}
		l.spaces = append(l.spaces, s)
	}
	l.registry, err = startRegistry(ctx, home, s.Work, filepath.Join(l.logs, "registry.log"))
	return l, err
}

func (l *lab) close() {
	l.stopNodes()
	if l.registry != nil {
		l.registry.StopWithin(5 * time.Second)
	}
	if l.net != nil {
		l.net.Close()
	}
	_ = os.RemoveAll(l.data)
}

// stopNodes ends all nodes and removes what they have stored.
func (l *lab) stopNodes() {
	for _, n := range l.nodes {
		if n.Process != nil {
			n.Signal(syscall.SIGCONT)
			n.Signal(syscall.SIGTERM)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, n := range l.nodes {
		if n.Process != nil {
			n.StopWithin(time.Until(deadline))
		}
	}
	for _, f := range l.after {
		f()
	}
	l.nodes, l.after = nil, nil
	_ = os.RemoveAll(l.data)
	_ = os.MkdirAll(l.data, 0o755)
}

func (l *lab) logFile(name string) string {
	return filepath.Join(l.logs, l.label+"-"+name+".log")
}

// secret returns a file with the key of that name.
func (l *lab) secret(name string) string { return l.writeSecret(name, name) }

// writeSecret writes a file of keys, of 32 bytes in base64, one in a line; each
// is made of its name. The file is replaced as a whole.
func (l *lab) writeSecret(name string, keys ...string) string {
	var text strings.Builder
	for _, k := range keys {
		key := make([]byte, 32)
		copy(key, k+", not for any other use")
		text.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	}
	file := filepath.Join(l.logs, name)
	_ = os.WriteFile(file+".new", []byte(text.String()), 0o600)
	_ = os.Rename(file+".new", file)
	return file
}

// fullDisk mounts a small tmpfs for this row.
func (l *lab) fullDisk(name string, size int) (string, error) {
	dir := filepath.Join(l.data, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return "", fmt.Errorf("mount tmpfs: %w", err)
	}
	l.after = append(l.after, func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, nil
}

// direct gives the registry itself as the target of each machine.
func (l *lab) direct() (all []target) {
	for _, s := range l.spaces {
		all = append(all, target{s, l.registry.url()})
	}
	return all
}

// linkTime returns how long size bytes take over a link of so many Mbit/s.
func linkTime(size int64, rate int) time.Duration {
	return time.Duration(float64(size*8) / float64(rate) * 1e3)
}

// buildGranary builds the binary of the module that this program is of.
func buildGranary(ctx context.Context, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "granary")
	return file, netns.BuildGranary(ctx, file)
}
