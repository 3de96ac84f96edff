package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Tools is where simtest/e2e/install.sh has put programs.
func Tools() string { return os.Getenv("GRANARY_TOOLS") }

// Tool finds a program there, or where programs are.
func Tool(names ...string) (string, error) {
	for _, name := range names {
		for _, path := range []string{filepath.Join(Tools(), name), name} {
			if found, err := exec.LookPath(path); err == nil {
				return found, nil
			}
		}
	}
	return "", fmt.Errorf("MISSING: %s; run simtest/e2e/install.sh as root, and name its folder in $GRANARY_TOOLS", strings.Join(names, " or "))
}

// BuildGranary builds the program of the module that this one is of.
func BuildGranary(ctx context.Context, to string) error { return BuildFrom(ctx, "", to) }

// BuildFrom is BuildGranary of the sources in a directory, "" for the caller's module, with more flags of "go build".
func BuildFrom(ctx context.Context, dir, to string, flags ...string) error {
	args := append([]string{"build", "-o", to}, flags...)
	build := exec.CommandContext(ctx, "go", append(args, "github.com/granary-oci/granary/cmd/granary")...)
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// UnmountBelow unmounts all that is mounted in a directory, the last first.
func UnmountBelow(dir string) {
	list, _ := os.ReadFile("/proc/self/mountinfo")
	var all []string
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			all = append(all, fields[4])
		}
	}
	for _, path := range slices.Backward(all) {
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
}
