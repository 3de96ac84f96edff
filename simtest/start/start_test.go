package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// TestTheSmallImage runs the program with the small image, twice: to its end, and
// interrupted.
func TestTheSmallImage(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	err := check()
	if _, missing := os.Stat(filepath.Join(netns.Tools(), "debian.tar")); err == nil && missing != nil {
		err = fmt.Errorf("debian.tar: %w", missing)
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	program, granary, work := filepath.Join(dir, "start"), filepath.Join(dir, "granary"), filepath.Join(dir, "work")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := netns.BuildGranary(t.Context(), granary); err != nil {
		t.Fatal(err)
	}
	args := []string{"-small", "-work", work, "-granary", granary, "-formats", "estargz"}
	t.Run("table", func(t *testing.T) { testTable(t, program, work, args) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, program, work, args) })
}

// testTable checks that a command that has printed has moved a part of the image, and one
// that runs again nothing of it.
func testTable(t *testing.T, program, work string, args []string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "-rows", "mount,profile,again", "-runs", "1")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	moved := make(map[string]float64) // MB, by row and command
	size := 0.0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "estargz" && f[2] == "MB":
			size, err = strconv.ParseFloat(f[1], 64)
		case len(f) == 10 && f[1] == "estargz":
			moved[f[0]+" "+f[2]], err = strconv.ParseFloat(f[6], 64)
		}
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	for _, c := range small.commands {
		for _, row := range []string{"mount", "profile"} {
			if mb := moved[row+" "+c.name]; mb <= 0 || mb > size/2 {
				t.Errorf("%s, %s: %.2f MB of %.0f", row, c.name, mb, size)
			}
		}
		if mb, ok := moved["again "+c.name]; !ok || mb > 0.1 {
			t.Errorf("%s again: %.2f MB", c.name, mb)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
	nothingLeft(t, work, cmd.Process.Pid)
}

// testInterrupted interrupts the program while an image is mounted.
func testInterrupted(t *testing.T, program, work string, args []string) {
	cmd := exec.Command(program, append(args, "-rows", "mount", "-trace")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	lines, mounted := bufio.NewScanner(out), false
	for lines.Scan() {
		if !mounted && strings.HasSuffix(lines.Text(), " mounted") {
			mounted = true
			_ = cmd.Process.Signal(os.Interrupt)
		}
	}
	if err := cmd.Wait(); !mounted || err == nil {
		t.Errorf("mounted: %v; it ended with %v", mounted, err)
	}
	nothingLeft(t, work, cmd.Process.Pid)
}

// nothingLeft checks that a run has left no namespaces, mounts, devices and processes.
func nothingLeft(t *testing.T, work string, pid int) {
	t.Helper()
	if left, _ := filepath.Glob(fmt.Sprintf("/run/netns/%s%d-*", namePrefix, pid)); len(left) > 0 {
		t.Error("namespaces are left:", left)
	}
	if left, _ := filepath.Glob(filepath.Join(work, "run-*")); len(left) > 0 {
		t.Error("folders are left:", left)
	}
	if list, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(list, []byte(" "+work+"/")) {
		t.Errorf("mounts are left: %v\n%s", err, list)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range processes {
		if line, err := os.ReadFile(name); err == nil && bytes.Contains(line, []byte(work+"/run-")) {
			t.Errorf("a process is left: %q", line)
		}
	}
}
