package storetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FileSystem is one in a file of its own, of 320 MiB: XFS takes no less than 300. It goes when the
// test is over.
type FileSystem struct {
	Shares bool   // ranges of files can share bytes
	Image  string // the file that it is in
	Dir    string // where it is mounted

	kind string // ext4, xfs or btrfs
}

// OnEachFileSystem runs a test on file systems that can share bytes of files, and on one that
// cannot.
func OnEachFileSystem(t *testing.T, test func(t *testing.T, fs *FileSystem)) {
	t.Run("ext4", func(t *testing.T) { test(t, MakeFileSystem(t, "ext4")) })
	OnEachThatShares(t, test)
}

// OnEachThatShares runs a test on file systems that can share bytes of files.
func OnEachThatShares(t *testing.T, test func(t *testing.T, fs *FileSystem)) {
	t.Run("xfs", func(t *testing.T) { test(t, MakeFileSystem(t, "xfs")) })
	t.Run("btrfs", func(t *testing.T) { test(t, MakeFileSystem(t, "btrfs")) })
}

// MakeFileSystem returns one that is mounted: ext4, xfs or btrfs. It skips the test without root, programs or loop devices, and fails it in CI.
func MakeFileSystem(t testing.TB, kind string) *FileSystem {
	t.Helper()
	fs := &FileSystem{kind: kind, Shares: kind != "ext4", Image: filepath.Join(t.TempDir(), "image"), Dir: t.TempDir()}
	err := os.WriteFile(fs.Image, nil, 0o600)
	if err == nil {
		err = os.Truncate(fs.Image, 320<<20)
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("it takes root")
	}
	if err == nil {
		err = run("mkfs."+kind, map[string]string{"ext4": "-Fq", "xfs": "-q", "btrfs": "-q"}[kind], fs.Image)
	}
	if err == nil {
		err = fs.Mount()
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s: %v; CI has it", kind, err)
	}
	if err != nil {
		t.Skipf("%s cannot be mounted here: %v", kind, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs.Dir, unix.MNT_DETACH) })
	return fs
}

func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}

// Mount mounts it again.
func (fs *FileSystem) Mount() error {
	if fs.kind == "btrfs" {
		return run("mount", "-o", "loop,compress=zstd", fs.Image, fs.Dir) // of which places on disk are told in another way
	}
	return run("mount", "-o", "loop", fs.Image, fs.Dir)
}

// Unmount unmounts it, once nothing in it is open.
func (fs *FileSystem) Unmount() (err error) {
	for range 100 {
		if err = unix.Unmount(fs.Dir, 0); !errors.Is(err, unix.EBUSY) { // whoever looks at all mounts keeps it so for a moment
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// Folder returns a new one, which goes when the test is over.
func (fs *FileSystem) Folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(fs.Dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Sync has the image hold all that was written.
func (fs *FileSystem) Sync(t testing.TB) {
	t.Helper()
	f, err := os.Open(fs.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// Used returns how many bytes of the file system are in use, once all that was written is on it.
func (fs *FileSystem) Used(t testing.TB) int64 {
	t.Helper()
	fs.Sync(t)
	var st unix.Statfs_t
	if err := unix.Statfs(fs.Dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
