package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
)

// nobody is the user that owns nothing.
const nobody = 65534

// asNobody has a program run as a user who is not root, and who has a home.
func asNobody(cmd *exec.Cmd, home string) *exec.Cmd {
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

// nobodysHome is a directory that nobody can get to; those of tests are for their user.
func nobodysHome(t *testing.T) string {
	t.Helper()
	home, err := os.MkdirTemp("", "granary-home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	if err := errors.Join(os.Chown(home, nobody, nobody), os.Chmod(filepath.Dir(granaryBinary), 0o755)); err != nil {
		t.Fatal(err)
	}
	return home
}

// mountAsNobody mounts an image, without a node that runs, at home/image.
func mountAsNobody(t *testing.T, home, upstream string) (p *programs.Process, dir string) {
	t.Helper()
	dir = filepath.Join(home, "image")
	if out, err := asNobody(exec.Command("mkdir", "-p", dir), home).CombinedOutput(); err != nil {
		t.Fatalf("mkdir: %v\n%s", err, out)
	}
	cmd := asNobody(exec.Command(granaryBinary, "mount", "app:v1", dir, "--node", "http://127.0.0.1:1",
		"--upstream", "registry.test="+upstream, "--default-upstream", "registry.test"), home)
	p = programs.StartCommand(t, cmd)
	p.Quit = syscall.SIGKILL
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	mounted(t, p, dir)
	return p, dir
}

// TestWithoutRoot mounts an image as a user of whom nothing is known, with fusermount3.
func TestWithoutRoot(t *testing.T) {
	needFUSE(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		programs.Missing(t, "fusermount3")
	}
	if info, err := os.Stat("/dev/fuse"); err != nil || info.Mode().Perm() != 0o666 {
		programs.Missing(t, "/dev/fuse for all users")
	}
	img, files := plainImage(t)
	r := startRegistry(t, img)
	home := nobodysHome(t)
	p, dir := mountAsNobody(t, home, r.URL)
	checkAsNobody := func() {
		t.Helper()
		for name, want := range files {
			out, err := asNobody(exec.Command("sha256sum", filepath.Join(dir, name)), home).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), fmt.Sprintf("%x ", want)) {
				t.Errorf("%s: %s, %v", name, out, err)
			}
		}
	}
	checkAsNobody()
	out, err := asNobody(exec.Command("stat", "--format=%n %F %a %u:%g %s %Y", "file-0"), dir).CombinedOutput()
	if want := fmt.Sprintf("file-0 regular file 644 0:0 %d 1000000000\n", plainSize); err != nil || string(out) != want {
		t.Errorf("stat: %s, %v; want %s", out, err, want)
	}
	if _, err := os.ReadDir(dir); !errors.Is(err, unix.EACCES) {
		t.Errorf("others can look into it: %v", err)
	}

	if err := p.End(syscall.SIGKILL); err == nil {
		t.Error("a killed mount ended well")
	}
	again, dir := mountAsNobody(t, home, r.URL) // over what is left of the first
	checkAsNobody()
	endWell(t, again, dir)
	r.Close() // all is in the user's cache
	last, dir := mountAsNobody(t, home, r.URL)
	checkAsNobody()
	endWell(t, last, dir)
}
