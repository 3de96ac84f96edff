// Package programs finds, starts and ends the programs that tests run: granary itself, real
// registries, and the clients of Debian and of simtest/e2e/install.sh. What is missing skips
// a test, and fails it where all should be there.
package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Missing skips a test for want of something, or fails it in CI, which has it.
func Missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s; CI has it", what)
	}
	t.Skipf("MISSING: %s; run simtest/e2e/install.sh as root, if that installs it", what)
}

// NeedRoot skips tests of what works for root only.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// NeedLines skips tests that make lines between network namespaces.
func NeedLines(t *testing.T) {
	t.Helper()
	NeedRoot(t)
	for _, name := range []string{"ip", "tc", "nft"} {
		OfSystem(t, name)
	}
	NeedDevice(t, "/dev/net/tun")
}

// NeedDevice skips tests that take a device.
func NeedDevice(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		Missing(t, path)
	}
}

// OfSystem finds a program of the system.
func OfSystem(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if dir == os.Getenv("GRANARY_TOOLS") {
			continue // containerd is there too, in another version
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	Missing(t, name)
	return ""
}

// Tool finds a program that install.sh has built.
func Tool(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("GRANARY_TOOLS"); dir != "" {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	Missing(t, name+" in $GRANARY_TOOLS")
	return ""
}

// Build builds commands of this module, by where they are in it, into a directory. It is for
// TestMain of a package that is two levels below the module's root.
func Build(dir string, commands ...string) error {
	if err := lookAtSources(); err != nil {
		return err
	}
	for _, c := range commands {
		build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, filepath.Base(c)), "github.com/granary-oci/granary/"+c)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return nil
}

// lookAtSources makes the results of tests depend on the program, which is built by another
// process: go test remembers results for as long as the files that a test has looked at
// stay the same.
func lookAtSources() error {
	return filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
}

// Run runs a command to its end and returns what it printed.
func Run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := TryRun(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// TryRun runs a command to its end and returns what it printed; what it said on stderr is
// there only if it failed.
func TryRun(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String() + stderr.String(), err
	}
	return stdout.String(), nil // crane, for one, shows a registry's warnings on stderr
}

// Write makes a file of a configuration.
func Write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// ShortDir makes a directory for sockets, whose paths are short, while those of test folders
// are not.
func ShortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "granary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
