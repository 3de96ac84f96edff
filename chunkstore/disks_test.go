package chunkstore_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileSystem is one in a file of its own, of 320 MiB: XFS takes no less than 300.
type fileSystem struct {
	kind   string
	shares bool // ranges of files can share bytes
	image  string
	dir    string // where it is mounted
}

// onEachFileSystem runs a test on file systems that can share bytes of files, and on one that
// cannot.
func onEachFileSystem(t *testing.T, test func(t *testing.T, fs *fileSystem)) {
	t.Run("ext4", func(t *testing.T) { test(t, makeFileSystem(t, "ext4")) })
	onEachThatShares(t, test)
}

func onEachThatShares(t *testing.T, test func(t *testing.T, fs *fileSystem)) {
	t.Run("xfs", func(t *testing.T) { test(t, makeFileSystem(t, "xfs")) })
	t.Run("btrfs", func(t *testing.T) { test(t, makeFileSystem(t, "btrfs")) })
}

// makeFileSystem skips the test without root, programs or loop devices, and fails it in CI.
func makeFileSystem(t testing.TB, kind string) *fileSystem {
	t.Helper()
	fs := &fileSystem{kind: kind, shares: kind != "ext4", image: filepath.Join(t.TempDir(), "image"), dir: t.TempDir()}
	err := os.WriteFile(fs.image, nil, 0o600)
	if err == nil {
		err = os.Truncate(fs.image, 320<<20)
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("it takes root")
	}
	if err == nil {
		err = run("mkfs."+kind, map[string]string{"ext4": "-Fq", "xfs": "-q", "btrfs": "-q"}[kind], fs.image)
	}
	if err == nil {
		err = fs.mount()
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s: %v; CI has it", kind, err)
	}
	if err != nil {
		t.Skipf("%s cannot be mounted here: %v", kind, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs.dir, unix.MNT_DETACH) })
	return fs
}

func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}

func (fs *fileSystem) mount() error {
	if fs.kind == "btrfs" {
		return run("mount", "-o", "loop,compress=zstd", fs.image, fs.dir) // of which places on disk are told in another way
	}
	return run("mount", "-o", "loop", fs.image, fs.dir)
}

func (fs *fileSystem) unmount() (err error) {
	for range 100 {
		if err = unix.Unmount(fs.dir, 0); !errors.Is(err, unix.EBUSY) { // whoever looks at all mounts keeps it so for a moment
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// folder returns a new one, which goes when the test is over.
func (fs *fileSystem) folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(fs.dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (fs *fileSystem) sync(t testing.TB) {
	t.Helper()
	f, err := os.Open(fs.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// used returns how many bytes of the file system are.
func (fs *fileSystem) used(t testing.TB) int64 {
	t.Helper()
	fs.sync(t)
	var st unix.Statfs_t
	if err := unix.Statfs(fs.dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
