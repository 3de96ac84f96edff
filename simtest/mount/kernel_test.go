package mount

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
)

// TestTheKernelMountsALayer has images of one layer, which the kernel mounts itself.
func TestTheKernelMountsALayer(t *testing.T) {
	needFUSE(t)
	needTools(t, "mkfs.erofs", "mksquashfs")
	dir := makeTree(t)
	for name, img := range map[string]*image{
		"EROFS":           imageOf(t, dir, erofsType, erofs(t, dir)),
		"CompressedEROFS": imageOf(t, dir, erofsType, erofs(t, dir, "-zlz4")),
		"Squashfs":        imageOf(t, dir, squashfsType, squashfs(t, dir)),
	} {
		t.Run(name, func(t *testing.T) {
			kernelMountsALayer(t, img, strings.ToLower(strings.TrimPrefix(name, "Compressed")))
		})
	}
}

func kernelMountsALayer(t *testing.T, img *image, kind string) {
	precision := time.Nanosecond
	if kind == "squashfs" {
		precision = time.Second
	}
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	first := mount(t, dir, "--node", n.admin, "--kernel-mounts", "--prefetch", "off")
	if mounts := mountsNow(t, dir); len(mounts) != 1 || !strings.Contains(mounts[0], " - "+kind+" ") || !strings.Contains(mounts[0], "ro,nosuid,nodev") {
		t.Errorf("mounted are %q", mounts)
	}
	find(t, dir)
	if got := read(t, filepath.Join(dir, "etc/hello")); string(got) != "hello\n" {
		t.Errorf("etc/hello has %q", got)
	}
	if total := blobSize(img); r.size.Load() > total/3 {
		t.Errorf("of %d bytes %d came for names and a small file", total, r.size.Load())
	}
	readWhileTheNodeIsReplaced(t, n, img, dir)
	compareTrees(t, img.unpacked, dir, precision)
	runInOverlay(t, dir)

	if err := first.End(syscall.SIGKILL); err == nil {
		t.Error("a killed mount ended well")
	}
	again := mount(t, dir, "--node", n.admin, "--kernel-mounts", "--prefetch", "off") // over what is left of the first
	compareTrees(t, img.unpacked, dir, precision)
	if status := start(t, "mount", "app:v1", dir, "--default-upstream", "registry.test", "--node", n.admin); status.Cmd.Wait() == nil || !strings.Contains(status.Printed(), "is mounted there") {
		t.Errorf("a mount over a mount: %s", status.Printed())
	}
	endWell(t, again, dir)

	r.Close()
	last := mount(t, dir, "--node", n.admin, "--kernel-mounts")
	compareTrees(t, img.unpacked, dir, precision)
	unmountInUse(t, last, dir)
	if mounts := mountsNow(t, dir); len(mounts) > 0 {
		t.Errorf("left are %q", mounts)
	}
}

// TestTheKernelMountsSomeLayers has an image of layers of all kinds.
func TestTheKernelMountsSomeLayers(t *testing.T) {
	needFUSE(t)
	needTools(t, "mkfs.erofs", "mksquashfs")
	img := makeMixedImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	plain, dir := t.TempDir(), t.TempDir()
	mount(t, plain, "--node", n.admin)
	first := mount(t, dir, "--node", n.admin, "--kernel-mounts")
	if mounts := mountsNow(t, dir); len(mounts) != 1 || !strings.Contains(mounts[0], " - overlay ") || !strings.Contains(mounts[0], "ro,nosuid,nodev") {
		t.Errorf("mounted are %q", mounts)
	}
	compareTrees(t, plain, dir, time.Second)

	if err := first.End(syscall.SIGKILL); err == nil {
		t.Error("a killed mount ended well")
	}
	again := mount(t, dir, "--node", n.admin, "--kernel-mounts")
	compareTrees(t, plain, dir, time.Second)
	unmountInUse(t, again, dir)

	writeToMount(t, n, dir, "--kernel-mounts")
	writeToMount(t, n, dir)
	if mounts := mountsNow(t, dir); len(mounts) > 0 {
		t.Errorf("left are %q", mounts)
	}
}

// TestTheKernelMountsOverAnOpaqueRoot has a layer that hides all below it, twice.
func TestTheKernelMountsOverAnOpaqueRoot(t *testing.T) {
	needFUSE(t)
	needTools(t, "mkfs.erofs")
	below, above := t.TempDir(), t.TempDir()
	write(t, below, "below", []byte("below"))
	write(t, above, "above", []byte("above"))
	if err := unix.Setxattr(above, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	img := &image{blobs: make(map[string][]byte)}
	opaque := img.add(erofsType, erofs(t, above))
	top := img.add(ocispec.MediaTypeImageLayer, tarOf(t, [2]string{"top", "top"}))
	img.finish(t, img.add(erofsType, erofs(t, below)), opaque, opaque, top)
	n := startNode(t, startRegistry(t, img).URL)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin, "--kernel-mounts")
	if seen := strings.TrimSpace(string(command(t, "ls", dir))); seen != "above\ntop" {
		t.Errorf("seen is %q", seen)
	}
	endWell(t, p, dir)
}

// writeToMount runs a program in a mount that can be written to, and changes what is
// there. It is there when the image is mounted again.
func writeToMount(t *testing.T, n *node, dir string, flags ...string) {
	t.Helper()
	upper := t.TempDir()
	flags = append([]string{"--node", n.admin, "--upper", upper}, flags...)
	p := mount(t, dir, flags...)
	cmd := exec.Command("/app/granary", "version")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "granary ") {
		t.Errorf("%s: %v", out, err)
	}
	for _, f := range []struct{ name, content string }{{"top", "new"}, {"usr/bin/7", "new"}, {"sq/three", "three"}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.content), 0o600); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "etc/hello")); err != nil {
		t.Error(err)
	}
	if err := p.End(syscall.SIGKILL); err == nil {
		t.Error("a killed mount ended well")
	}
	p = mount(t, dir, flags...)
	for name, want := range map[string]string{"top": "new", "usr/bin/7": "new", "sq/three": "three", "etc/fourth": "hello\n"} {
		if got := read(t, filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s has %q", name, got)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "etc/hello")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was removed: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(upper, "upper/sq/three")); err != nil {
		t.Error(err)
	}
	endWell(t, p, dir)
}

// TestTheKernelMountsDamagedLayers has images that whoever made them has damaged: to mount
// or to read them is an error, soon.
func TestTheKernelMountsDamagedLayers(t *testing.T) {
	needFUSE(t)
	needTools(t, "mkfs.erofs", "mksquashfs")
	tree := makeTree(t)
	plain, packed, squashed := erofs(t, tree), erofs(t, tree, "-zlz4"), squashfs(t, tree)
	flipped := func(p []byte, at ...int) []byte {
		p = append([]byte(nil), p...)
		for _, i := range at {
			p[i] ^= 0x55
		}
		return p
	}
	for name, layer := range map[string][]byte{
		"ATruncatedEROFS":           plain[:len(plain)/2],
		"ATruncatedCompressedEROFS": packed[:len(packed)/2],
		"ATruncatedSquashfs":        squashed[:len(squashed)/2],
		"AFlippedSuperblock":        flipped(packed, 1024+14),
		"AFlippedRoot":              flipped(plain, 1024+14, 1024+4), // its number, and the checksum
		"FlippedRecords":            flipped(packed, every(2048, 64<<10, 97)...),
		"AFlippedSquashfs":          flipped(squashed, every(4, 96, 8)...),
		"AShortEROFS":               plain[:2048],
	} {
		t.Run(name, func(t *testing.T) {
			img := imageOf(t, tree, erofsType, layer)
			n := startNode(t, startRegistry(t, img).URL)
			dir := t.TempDir()
			p := start(t, "mount", "app:v1", dir, "--default-upstream", "registry.test", "--node", n.admin, "--kernel-mounts")
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			ended := make(chan struct{})
			go func() { defer close(ended); _ = p.Cmd.Wait() }()
			programs.Eventually(t, "the image is mounted, or it is said why not", func() bool {
				select {
				case <-ended:
					return true
				default:
					return strings.Contains(p.Printed(), "mounted at "+dir)
				}
			})
			if strings.Contains(p.Printed(), "mounted at "+dir) {
				if err := readAll(dir); err == nil {
					t.Error("all of a damaged image can be read")
				}
				_ = p.Cmd.Process.Signal(syscall.SIGTERM)
			} else if !strings.Contains(p.Printed(), "granary: ") {
				t.Errorf("it is not said why: %s", p.Printed())
			}
			programs.Eventually(t, "the mount ends", func() bool {
				select {
				case <-ended:
					return true
				default:
					return false
				}
			})
			if mounts := mountsNow(t, dir); len(mounts) > 0 {
				t.Errorf("left are %q", mounts)
			}
		})
	}
}

// TestTheKernelMountsWhileTheRegistryStalls ends a mount that waits for what the kernel
// reads.
func TestTheKernelMountsWhileTheRegistryStalls(t *testing.T) {
	needFUSE(t)
	needTools(t, "mksquashfs")
	tree := makeTree(t)
	img := imageOf(t, tree, squashfsType, squashfs(t, tree)) // its tables are at its end
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		r := startRegistry(t, img)
		r.state.Store(stuckInside)
		n := startNode(t, r.URL)
		dir := t.TempDir()
		p := start(t, "mount", "app:v1", dir, "--default-upstream", "registry.test", "--node", n.admin, "--kernel-mounts", "--prefetch", "off")
		programs.Eventually(t, "the kernel reads", func() bool { return r.held.Load() > 0 })
		children := strings.Fields(string(command(t, "pgrep", "--parent", fmt.Sprint(p.Cmd.Process.Pid))))
		if len(children) != 1 {
			t.Errorf("%d processes mount", len(children))
		}
		if err := p.End(signal); err == nil {
			t.Error("a mount that was not done ended well")
		}
		for _, child := range children {
			programs.Eventually(t, "who mounts ends", func() bool {
				_, err := os.Stat("/proc/" + child)
				return errors.Is(err, fs.ErrNotExist)
			})
		}
		if mounts := mountsNow(t, dir); len(mounts) > 0 {
			t.Errorf("left are %q", mounts)
		}
	}
}

// every returns the numbers from one to another, by a step.
func every(from, to, step int) (all []int) {
	for i := from; i < to; i += step {
		all = append(all, i)
	}
	return all
}

// readAll reads all files, and returns the errors.
func readAll(dir string) error {
	var errs []error
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var f *os.File
			if f, err = os.Open(path); err == nil {
				_, err = io.Copy(io.Discard, f)
				f.Close()
			}
		}
		errs = append(errs, err)
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// find looks at all names.
func find(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// mountsNow returns what is mounted at a directory, or is a kernel mount's elsewhere.
func mountsNow(t *testing.T, dir string) (mounts []string) {
	t.Helper()
	for _, line := range strings.Split(string(read(t, "/proc/self/mountinfo")), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], "/run/granary/")) {
			mounts = append(mounts, line)
		}
	}
	return mounts
}

func blobSize(img *image) (total int64) {
	for _, p := range img.blobs {
		total += int64(len(p))
	}
	return total
}
