package deploy

import (
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// image is what the Dockerfile makes of a binary that was built.
type image struct {
	rootfs string
	Config struct {
		User                 string
		Entrypoint, Cmd, Env []string
	}
}

// buildImage builds the program and the image.
func buildImage(t *testing.T) *image {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	context, store := t.TempDir(), t.TempDir()
	binary := filepath.Join(context, "granary-linux-"+runtime.GOARCH)
	build := exec.Command("go", "build", "-o", binary, "github.com/granary-oci/granary/cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(context, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	podman := func(args ...string) []byte {
		t.Helper()
		out, err := run(nil, program(t, "podman"), append([]string{"--root", store + "/root", "--runroot", store + "/run", "--tmpdir", store + "/tmp",
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}, args...)...)
		return must(t, out, err)
	}
	const name = "granary:test"
	podman("build", "--quiet", "--isolation", "chroot", "--file", "../../deploy/docker/Dockerfile", "--build-arg", "TARGETARCH="+runtime.GOARCH, "--tag", name, context)
	var all []image
	if err := jsonInto(podman("image", "inspect", name), &all); err != nil {
		t.Fatal(err)
	}
	i := &all[0]
	i.rootfs = strings.TrimSpace(string(podman("image", "mount", name)))
	return i
}

// TestImage: the image is one static program and an empty directory, and runs as nobody.
func TestImage(t *testing.T) {
	i := buildImage(t)
	if i.Config.User != "65532:65532" || !slices.Equal(i.Config.Entrypoint, []string{"/granary"}) || !slices.Equal(i.Config.Cmd, []string{"serve"}) {
		t.Errorf("configuration %+v", i.Config)
	}
	var files []string
	err := filepath.WalkDir(i.rootfs, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, strings.TrimPrefix(path, i.rootfs))
		}
		return err
	})
	if err != nil || !slices.Equal(files, []string{"/granary"}) {
		t.Errorf("the image has %v: %v", files, err)
	}
	isStatic(t, filepath.Join(i.rootfs, "granary"), runtime.GOARCH)
}

// TestRelease looks at what make release has made, in $GRANARY_RELEASE.
func TestRelease(t *testing.T) {
	dist := os.Getenv("GRANARY_RELEASE")
	if dist == "" {
		t.Skip("it takes minutes to build: set GRANARY_RELEASE to where make release has")
	}
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(dist, "granary-linux-"+arch)
		isStatic(t, file, arch)
		p, err := os.ReadFile(file + ".cdx.json")
		var bom struct {
			BOMFormat  string
			Components []struct{ PURL string }
		}
		if err := jsonInto(must(t, p, err), &bom); err != nil {
			t.Fatal(err)
		}
		named := slices.ContainsFunc(bom.Components, func(c struct{ PURL string }) bool {
			return strings.HasPrefix(c.PURL, "pkg:golang/github.com/hashicorp/memberlist@")
		})
		if bom.BOMFormat != "CycloneDX" || len(bom.Components) < 50 || !named {
			t.Errorf("the bill of materials of %s has %d components", arch, len(bom.Components))
		}
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = dist
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") < 5 {
		t.Errorf("checksums: %v: %s", err, out)
	}
}

// isStatic says what a program wants of a system: nothing.
func isStatic(t *testing.T, file, arch string) {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]; f.Machine != want {
		t.Errorf("%s is for %v, want %v", filepath.Base(file), f.Machine, want)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static: it has %v", filepath.Base(file), p.Type)
		}
	}
}
