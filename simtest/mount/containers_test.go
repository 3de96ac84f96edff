package mount

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
)

// script is what containers run: it reads programs, libraries and files of the image, and
// writes if it may.
const script = `#!/bin/bash
set -eu
read version </etc/debian_version
echo "Debian ${version%%.*} has $(ls /usr/bin | wc -l) programs"
if (echo written >/srv/made) 2>/dev/null; then cat /srv/made; else echo read-only; fi
`

// debianImage is a Debian, with a script, and with what runtimes want to find in an image
// that they cannot write to.
func debianImage(t *testing.T) (img *image, count int) {
	t.Helper()
	debian, err := os.ReadFile(filepath.Join(os.Getenv("GRANARY_TOOLS"), "debian.tar"))
	if err != nil {
		programs.Missing(t, "debian.tar in $GRANARY_TOOLS")
	}
	for r := tar.NewReader(bytes.NewReader(debian)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if dir, name := filepath.Split(filepath.Clean("/" + h.Name)); dir == "/usr/bin/" && name != "" {
			count++
		}
	}
	var above bytes.Buffer
	w := tar.NewWriter(&above)
	add := func(h *tar.Header, content string) {
		h.Size, h.ModTime = int64(len(content)), time.Unix(1e9, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(content)) // of a buffer
	}
	add(&tar.Header{Name: "srv/script", Mode: 0o755, Typeflag: tar.TypeReg}, script)
	add(&tar.Header{Name: "etc/mtab", Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "../proc/self/mounts"}, "")
	for _, name := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"} {
		add(&tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}, "")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img = &image{blobs: make(map[string][]byte)}
	img.finish(t, img.add(ocispec.MediaTypeImageLayer, debian), img.add(ocispec.MediaTypeImageLayer, above.Bytes()))
	return img, count
}

// TestContainers runs containers of a mounted Debian, of which little comes.
func TestContainers(t *testing.T) {
	needFUSE(t)
	for _, name := range []string{"runc", "podman"} {
		if _, err := exec.LookPath(name); err != nil {
			programs.Missing(t, name)
		}
	}
	img, count := debianImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	writable := "Debian 12 has " + strconv.Itoa(count) + " programs\nwritten\n"
	readOnly := strings.Replace(writable, "written", "read-only", 1)
	for _, c := range []struct {
		name, want string
		run        func(*testing.T, string) *exec.Cmd
	}{
		{"chroot", writable, chrooted},
		{"runc", writable, func(t *testing.T, dir string) *exec.Cmd { return runc(t, overlayOn(t, dir), false) }},
		{"runc/read-only", readOnly, func(t *testing.T, dir string) *exec.Cmd { return runc(t, dir, true) }},
		{"podman", writable, func(t *testing.T, dir string) *exec.Cmd { return podman(t, dir+":O") }},
		{"podman/read-only", readOnly, func(t *testing.T, dir string) *exec.Cmd { return podman(t, dir, "--read-only") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := c.run(t, dir).CombinedOutput()
			if err != nil || string(out) != c.want {
				t.Errorf("got %q, %v; want %q", out, err, c.want)
			}
		})
	}
	if _, err := os.Lstat(filepath.Join(dir, "srv/made")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what containers have written is in the mount: %v", err)
	}
	endWell(t, p, dir)
	if share := cameOf(t, p); share > 15 {
		t.Errorf("%.1f %% of the image came", share)
	}
}

// cameOf returns which part of an image a mount says that came, in percent.
func cameOf(t *testing.T, p *programs.Process) float64 {
	t.Helper()
	found := regexp.MustCompile(`came, which is ([0-9.]+) %`).FindStringSubmatch(p.Printed())
	if found == nil {
		t.Fatalf("mount has printed %q", p.Printed())
	}
	share, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return share
}

func chrooted(t *testing.T, dir string) *exec.Cmd {
	return exec.Command("chroot", overlayOn(t, dir), "/srv/script")
}

// runc runs a container as the specification that runc makes has it.
func runc(t *testing.T, root string, readOnly bool) *exec.Cmd {
	t.Helper()
	bundle := t.TempDir()
	command(t, "runc", "spec", "--bundle", bundle)
	file := filepath.Join(bundle, "config.json")
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(p, &spec); err != nil {
		t.Fatal(err)
	}
	spec["root"] = map[string]any{"path": root, "readonly": readOnly}
	process := spec["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/srv/script"}
	delete(process, "rlimits") // which need not be this machine's to give
	if p, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, p, 0o644); err != nil {
		t.Fatal(err)
	}
	name := "granary-" + filepath.Base(filepath.Dir(bundle))
	return exec.Command("runc", "--root", t.TempDir(), "run", "--bundle", bundle, name)
}

// podman runs a container from a root file system that it did not make.
func podman(t *testing.T, root string, more ...string) *exec.Cmd {
	t.Helper()
	state, err := os.MkdirTemp("", "granary-podman-") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(state, "root/overlay"), unix.MNT_DETACH) // of its own, private
		_ = os.RemoveAll(state)
	})
	dir := func(name string) string { return filepath.Join(state, name) }
	args := []string{
		"--root", dir("root"), "--runroot", dir("runroot"), "--tmpdir", dir("tmp"), "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
		"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
	}
	cmd := exec.Command("podman", append(append(args, more...), "--rootfs", root, "/srv/script")...)
	cmd.Env = append(os.Environ(), "TMPDIR="+state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}
