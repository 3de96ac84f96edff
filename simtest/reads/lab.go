package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// system is a way to have the tree mounted.
type system struct {
	name  string
	mount func(ctx context.Context, at string) (unmount func() error, err error)
}

// lab has the tree, in all forms, and a node that has all of it.
type lab struct {
	options
	dir, mnt string
	granary  string // the program
	registry *httptest.Server
	node     *exec.Cmd
	admin    string
	systems  []*system
}

// newLab returns what is to be closed even if there is an error.
func newLab(ctx context.Context, o options) (l *lab, err error) {
	l = &lab{options: o}
	if l.dir, err = os.MkdirTemp("", "granary-reads-"); err != nil {
		return l, err
	}
	l.mnt, l.granary = filepath.Join(l.dir, "mnt"), filepath.Join(l.dir, "granary")
	tree := filepath.Join(l.dir, "tree")
	for _, dir := range []string{l.mnt, tree} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return l, err
		}
	}
	if err := l.makeTree(tree); err != nil {
		return l, err
	}
	ext4, erofs := filepath.Join(l.dir, "ext4"), filepath.Join(l.dir, "erofs")
	for _, args := range [][]string{
		{"go", "build", "-o", l.granary, "github.com/granary-oci/granary/cmd/granary"},
		{"mkfs.erofs", "--quiet", erofs, tree},
		{"truncate", "--size", fmt.Sprint(2*l.big + l.small*16<<10), ext4},
		{"mkfs.ext4", "-q", "-N", fmt.Sprint(2 * l.small), "-d", tree, ext4},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return l, fmt.Errorf("%s: %w\n%s", args[0], err, out)
		}
	}
	img, err := makeImage(tree)
	if err != nil {
		return l, err
	}
	l.registry = httptest.NewServer(img)
	if err := l.startNode(ctx); err != nil {
		return l, err
	}
	l.systems = []*system{
		{"ext4", looped(ext4, "ext4")},
		{"EROFS", looped(erofs, "erofs")},
		{"granary", l.mounted("--passthrough=auto")},
		{"granary, `--passthrough=off`", l.mounted("--passthrough=off")},
	}
	return l, errors.Join(l.complete(ctx), os.RemoveAll(tree))
}

func (l *lab) close() {
	if l.node != nil {
		_ = l.node.Process.Kill()
		_ = l.node.Wait()
	}
	if l.registry != nil {
		l.registry.Close()
	}
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// looped mounts an image through a loop device.
func looped(image, kind string) func(context.Context, string) (func() error, error) {
	return func(_ context.Context, at string) (func() error, error) {
		if out, err := exec.Command("mount", "-t", kind, "-o", "loop,ro", image, at).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("mount %s: %w\n%s", image, err, out)
		}
		return func() error { return unix.Unmount(at, 0) }, nil
	}
}

// mounted mounts through the node.
func (l *lab) mounted(flag string) func(context.Context, string) (func() error, error) {
	return func(ctx context.Context, at string) (func() error, error) {
		cmd := exec.Command(l.granary, "mount", "tree:v1", at, "--default-upstream", "registry.test", "--node", l.admin, flag)
		if err := startUntil(cmd, "mounted at"); err != nil {
			return nil, err
		}
		return func() error {
			return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
		}, nil
	}
}

func (l *lab) startNode(ctx context.Context) error {
	l.admin = "http://127.0.0.1:55051"
	l.node = exec.Command(l.granary, "serve", "--data-dir", filepath.Join(l.dir, "data"), "--cache-size", "8GiB", "--listen", "127.0.0.1:55050",
		"--admin", strings.TrimPrefix(l.admin, "http://"), "--upstream", "registry.test="+l.registry.URL, "--default-upstream", "registry.test")
	if err := startUntil(l.node, ""); err != nil {
		return err
	}
	for range 100 {
		resp, err := http.Get(l.admin + "/readyz")
		if err == nil {
			return resp.Body.Close()
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
	return errors.New("the node does not answer")
}

// startUntil starts a program and waits until it has printed a line with some words, if
// there are any.
func startUntil(cmd *exec.Cmd, words string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, to, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = to, to
	err = cmd.Start()
	to.Close()
	if err != nil {
		said.Close()
		return err
	}
	lines, all := bufio.NewScanner(said), ""
	for words != "" && lines.Scan() && !strings.Contains(lines.Text(), words) {
		all += lines.Text() + "\n"
	}
	go func() { defer said.Close(); _, _ = io.Copy(io.Discard, said) }()
	if words != "" && !strings.Contains(lines.Text(), words) {
		return fmt.Errorf("%s ended: %w\n%s", cmd.Path, cmd.Wait(), all)
	}
	return nil
}

// complete has the node fetch all that is read, and waits until it lends the large file.
func (l *lab) complete(ctx context.Context) error {
	s := l.systems[2]
	unmount, err := s.mount(ctx, l.mnt)
	if err != nil {
		return err
	}
	err = errors.Join(readInOrder(l.mnt), l.readSmall(l.mnt))
	for range 100 {
		before := l.nodeReads()
		if err == nil {
			err = readInOrder(l.mnt)
		}
		if l.nodeReads() == before || !sleep(ctx, 200*time.Millisecond) {
			break
		}
	}
	return errors.Join(err, unmount())
}

// nodeReads returns what the node has read of files and connections, in bytes.
func (l *lab) nodeReads() string {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", l.node.Process.Pid))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(p), "\n")
	return line
}

// profile starts to take the node's profile, if it is wanted.
func (l *lab) profile(ctx context.Context) (stop func() error) {
	if l.options.profile == "" {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	_ = cancel
	done := make(chan error, 1)
	go func() {
		out, err := exec.CommandContext(ctx, "curl", "-s", "-o", l.options.profile, l.admin+"/debug/pprof/profile?seconds=60").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("curl: %w\n%s", err, out)
		}
		done <- err
	}()
	return func() error { return <-done }
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func kernel() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "?"
	}
	return unix.ByteSliceToString(name.Release[:])
}
