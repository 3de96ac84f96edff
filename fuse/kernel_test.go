package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// mountVariable names the directory at which this program, run again, mounts kernelTree:
// who serves a mount must not use it. filesVariable, if it is set, names the directory
// with the files that are complete.
const (
	mountVariable = "GRANARY_TEST_MOUNT"
	filesVariable = "GRANARY_TEST_FILES"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == assembleCommand {
		if err := Assemble(os.Stdin); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(mountVariable); dir != "" {
		serve := serve
		if os.Getenv(stackVariable) != "" {
			serve = serveStack
		}
		if err := serve(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func kernelTree() []toc.Entry {
	attributed := file("d/attributed", 10)
	attributed.Xattrs = map[string]string{"user.key": "value"}
	secret := file("d/secret", 10)
	secret.Mode = 0o600
	return []toc.Entry{
		dir(""), dir("d"), file("d/f", 3<<20), link("again", "d/f"), symlink("s", "d/f"), sparse("d/sparse", 1<<40, 1<<39, 4096),
		attributed, secret, known("d/big", 5<<20), known("d/small", 5000), file("d/bad", 10), file("d/slow", 10), file("d/denied", 10),
	}
}

// known is a file with a digest.
func known(name string, size int64) toc.Entry {
	e := file(name, size)
	e.Digest = toc.Digest{1}
	return e
}

// complete are files that are complete: those of a directory.
type complete struct{ dir string }

func (c complete) Open(_ context.Context, f *toc.File) (*os.File, error) {
	return os.Open(filepath.Join(c.dir, f.Base()))
}

// odd are contents of which some cannot be read.
type odd struct{}

func (odd) ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error {
	switch f.Base() {
	case "bad":
		return errors.New("no luck")
	case "denied":
		return fs.ErrPermission
	case "slow":
		<-ctx.Done()
		return ctx.Err()
	}
	return new(pattern).ReadAt(ctx, f, p, off)
}

// serve mounts until SIGTERM.
func serve(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var b toc.Builder
	for _, e := range kernelTree() {
		if err := b.Add(e); err != nil {
			return err
		}
	}
	table, err := b.Done()
	if err != nil {
		return err
	}
	tree, err := toc.Overlay([]*toc.Layer{{TOC: table}})
	if err != nil {
		return err
	}
	cfg := Config{Tree: tree, Contents: odd{}, Source: "the image", Log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
	if dir := os.Getenv(filesVariable); dir != "" {
		cfg.Files = complete{dir}
	}
	f, err := New(cfg)
	if err != nil {
		return err
	}
	return f.Serve(ctx, dir, func() { fmt.Println("mounted") })
}

// served is a mount by another process.
type served struct {
	*exec.Cmd
	out bytes.Buffer // to be read after the end
}

// serveAt mounts kernelTree, or what else the environment says, for as long as the test
// runs.
func serveAt(t *testing.T, dir string, environment ...string) *served {
	t.Helper()
	needRoot(t)
	s := &served{Cmd: exec.Command(os.Args[0])}
	s.Env = append(append(os.Environ(), mountVariable+"="+dir), environment...)
	said, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.Stdout = to
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	to.Close()
	t.Cleanup(func() {
		_ = s.Process.Kill()
		_ = s.Wait()
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		said.Close()
	})
	line := make([]byte, len("mounted\n"))
	if _, err := io.ReadFull(said, line); err != nil || string(line) != "mounted\n" {
		rest, _ := io.ReadAll(said)
		t.Fatalf("%s%s, %v", line, rest, err)
	}
	go func() { _, _ = io.Copy(&s.out, said) }()
	return s
}

// needRoot skips a test where nothing can be mounted, and fails it where all should be
// there.
func needRoot(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("MISSING: root and /dev/fuse; CI has them")
		}
		t.Skip("MISSING: root and /dev/fuse")
	}
}

func TestTheKernelMounts(t *testing.T) {
	mnt := t.TempDir()
	if err := os.Chmod(filepath.Dir(mnt), 0o755); err != nil { // for other users to get there
		t.Fatal(err)
	}
	s := serveAt(t, mnt)
	at := func(name string) string { return filepath.Join(mnt, name) }

	p, err := os.ReadFile(at("s"))
	if err != nil || len(p) != 3<<20 || p[1<<20+5] != 5 {
		t.Errorf("%d bytes, %v", len(p), err)
	}
	var one, other unix.Stat_t
	if err := errors.Join(unix.Stat(at("d/f"), &one), unix.Stat(at("again"), &other)); err != nil || one.Ino != other.Ino || one.Nlink != 2 || one.Ino >= 1<<32 {
		t.Errorf("two names of a file: %+v, %+v, %v", one, other, err)
	}
	if err := os.WriteFile(at("d/new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a new file: %v", err)
	}
	if _, err := os.ReadFile(at("d/bad")); !errors.Is(err, unix.EIO) {
		t.Errorf("contents that cannot be read: %v", err)
	}
	if _, err := os.ReadFile(at("d/denied")); !errors.Is(err, unix.EACCES) {
		t.Errorf("contents that may not be read: %v", err)
	}
	value := make([]byte, 100)
	if n, err := unix.Getxattr(at("d/attributed"), "user.key", value); err != nil || string(value[:n]) != "value" {
		t.Errorf("attribute %q, %v", value[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(at("d/attributed"), "user.key", nil); err != nil || n != 5 {
		t.Errorf("an attribute of %d bytes, %v", n, err)
	}
	if _, err := unix.Getxattr(at("d/f"), "user.key", value); err != unix.ENODATA {
		t.Errorf("no attribute: %v", err)
	}
	checkSparse(t, at("d/sparse"))
	checkUsers(t, at("d/f"), at("d/secret"))
	checkInterrupt(t, at("d/slow"))

	if _, err := Prepare(mnt); err == nil || !strings.Contains(err.Error(), "the image is mounted there") {
		t.Errorf("mounted over a mount: %v", err)
	}
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
	if m, ok := mountAt(mnt); ok {
		t.Errorf("after the end there is %+v", m)
	}
}

// checkSparse checks a file of 1 TiB with 4 KiB in its middle.
func checkSparse(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != 1<<40 || info.Sys().(*syscall.Stat_t).Blocks != 8 {
		t.Errorf("%+v, %v", info, err)
	}
	data, err := f.Seek(0, unix.SEEK_DATA)
	hole, herr := f.Seek(1<<39, unix.SEEK_HOLE)
	if err != nil || herr != nil || data != 1<<39 || hole != 1<<39+4096 {
		t.Errorf("content from %d, %v, to %d, %v", data, err, hole, herr)
	}
	p := make([]byte, 3)
	if _, err := f.ReadAt(p, 1<<39-1); err != nil || !bytes.Equal(p, []byte{0, 0, 1}) {
		t.Errorf("about its beginning: %v, %v", p, err)
	}
}

// checkUsers checks that everybody may use the mount, as modes say.
func checkUsers(t *testing.T, public, secret string) {
	t.Helper()
	for name, want := range map[string]string{public: "", secret: "Permission denied"} {
		cmd := exec.Command("head", "--bytes=1", name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); !strings.Contains(said.String(), want) || (err == nil) != (want == "") {
			t.Errorf("%s read by another user: %v, %s", name, err, said.String())
		}
	}
}

// checkInterrupt checks that a program which waits for a read can be ended.
func checkInterrupt(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command("cat", name)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { t.Error("the read goes on"); _ = cmd.Process.Kill() })
	defer late.Stop()
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a read without end ended well")
			}
			return
		case <-time.After(20 * time.Millisecond):
			_ = cmd.Process.Signal(syscall.SIGTERM) // again, in case it was not reading yet
		}
	}
}

func TestADeadMountIsReplaced(t *testing.T) {
	mnt := t.TempDir()
	first := serveAt(t, mnt)
	var before, after unix.Stat_t
	if err := unix.Stat(filepath.Join(mnt, "d/f"), &before); err != nil {
		t.Fatal(err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if m, ok := mountAt(mnt); !ok || m.kind != "fuse.granary" {
		t.Fatalf("what a killed process leaves: %+v", m)
	}
	serveAt(t, mnt)
	if err := unix.Stat(filepath.Join(mnt, "d/f"), &after); err != nil || after.Ino != before.Ino {
		t.Errorf("number %d, and was %d, %v", after.Ino, before.Ino, err)
	}
}
