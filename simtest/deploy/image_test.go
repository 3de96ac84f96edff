package deploy

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
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

// workDir is for what all tests share.
var workDir string

// TestMain makes and removes workDir, and makes results depend on what is tested: go test
// remembers them for as long as the files that a test has looked at stay the same.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "granary-deploy-")
	for _, tree := range []string{"../..", chart} {
		err = errors.Join(err, filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && (tree == chart || strings.HasSuffix(path, ".go")) {
				_, err = os.Stat(path)
			}
			return err
		}))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "deploy:", err)
		os.Exit(1)
	}
	workDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// buildBinary builds the program, once.
var buildBinary = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(workDir, "context", "granary-linux-"+runtime.GOARCH)
	build := exec.Command("go", "build", "-o", binary, "github.com/granary-oci/granary/cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return binary, os.Mkdir(filepath.Join(workDir, "context/empty"), 0o755)
})

// buildImageOnce builds the image, by the Dockerfile.
var buildImageOnce = sync.OnceValues(func() (*image, error) {
	binary, err := buildBinary()
	if err != nil {
		return nil, err
	}
	podman := func(args ...string) ([]byte, error) {
		return run(nil, "podman", append([]string{"--root", workDir + "/root", "--runroot", workDir + "/run", "--tmpdir", workDir + "/tmp",
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}, args...)...)
	}
	const name = "granary:test"
	if _, err := podman("build", "--quiet", "--isolation", "chroot", "--file", "../../deploy/docker/Dockerfile",
		"--build-arg", "TARGETARCH="+runtime.GOARCH, "--tag", name, filepath.Dir(binary)); err != nil {
		return nil, err
	}
	inspected, err := podman("image", "inspect", name)
	if err != nil {
		return nil, err
	}
	var all []image
	if err := jsonInto(inspected, &all); err != nil {
		return nil, err
	}
	root, err := podman("image", "mount", name)
	all[0].rootfs = strings.TrimSpace(string(root))
	return &all[0], err
})

// buildImage returns the image, where one can be built.
func buildImage(t *testing.T) *image {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	program(t, "podman")
	i, err := buildImageOnce()
	if err != nil {
		t.Fatal(err)
	}
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
		if os.Getenv("CI") == "true" {
			t.Fatal("GRANARY_RELEASE is not set; CI has made a release")
		}
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
