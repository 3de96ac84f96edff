package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
)

func TestAProbeFailsWhereNoNodeAnswers(t *testing.T) {
	n := testNode(t, node.Config{})
	for _, path := range []string{"/readyz", "/healthz"} {
		if status, _, errs := granary(t, "pod", "check", path, "--node", n.AdminURL()); status != 0 {
			t.Errorf("%s of a node that runs: %s", path, errs)
		}
	}
	for _, args := range [][]string{{"--node", "http://127.0.0.1:1"}, {"/nothing", "--node", n.AdminURL()}} {
		if status, _, _ := granary(t, append([]string{"pod", "check"}, args...)...); status != 1 {
			t.Errorf("%v: status %d, want 1", args, status)
		}
	}
}

func TestADataDirectoryIsOwned(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("MISSING: root; CI has it")
		}
		t.Skip("MISSING: root")
	}
	dir, outside := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "outside")
	write := func(name string) {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	owner := func(name string) uint32 {
		info, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	for _, name := range []string{"blobs", "snapshotter"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	written := filepath.Join(dir, "snapshotter", "of-a-container")
	write(written)
	blob, link := filepath.Join(dir, "blobs", "a"), filepath.Join(dir, "link")
	write(blob)
	write(outside)
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	if status, _, errs := granary(t, "pod", "own", dir, "65532:65532"); status != 0 {
		t.Fatal(errs)
	}
	for name, want := range map[string]uint32{dir: 65532, blob: 65532, link: 65532, outside: 0, written: 0} {
		if got := owner(name); got != want {
			t.Errorf("%s is of user %d, want %d", name, got, want)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v: %v", info.Mode(), err)
	}
	late := filepath.Join(dir, "late")
	write(late)
	if status, _, errs := granary(t, "pod", "own", dir, "65532:65532"); status != 0 || owner(late) != 0 {
		t.Errorf("a directory that is theirs was walked again: %s", errs)
	}
	if status, _, errs := granary(t, "pod", "own", dir, "0:0"); status != 0 || owner(blob) != 0 || owner(dir) != 0 {
		t.Errorf("it does not come back: %s", errs)
	}
}

func TestAnOwnerIsTwoNumbers(t *testing.T) {
	for _, bad := range []string{"", "1", "a:b", "0:4294967295", "1:2:3", "0x1:1"} {
		if status, _, errs := granary(t, "pod", "own", t.TempDir(), bad); status != 1 || !strings.Contains(errs, "UID:GID") {
			t.Errorf("%q: status %d, %s", bad, status, errs)
		}
	}
}

// TestAwaitOutlastsWhatDNSKeeps: for half a minute a DNS server tells of two nodes where there
// are three, and then as long of as many that are done as there were before.
func TestAwaitOutlastsWhatDNSKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		look := func(_ context.Context, name string) (int, error) {
			switch is := time.Since(begin); {
			case name == "all" && is > 30*time.Second, is > time.Minute:
				return 3, nil
			}
			return 2, nil
		}
		c := podAwaitCmd{All: "all", Done: "done"}
		if f, ok := reflect.TypeOf(c).FieldByName("After"); ok {
			c.After, _ = time.ParseDuration(f.Tag.Get("default"))
		}
		if done, all, err := c.await(t.Context(), look); done != 3 || all != 3 || err != nil {
			t.Errorf("%d of %d: %v", done, all, err)
		}
	})
}

func TestAwaitCountsAddresses(t *testing.T) {
	if status, out, errs := granary(t, "pod", "await", "--after=0s", "127.0.0.1", "127.0.0.2"); status != 0 || !strings.Contains(out, "1 of 1") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var out, errs bytes.Buffer
	if status := run(ctx, []string{"pod", "await", "127.0.0.1", "missing.invalid"}, &out, &errs); status != 1 || !strings.Contains(errs.String(), "missing.invalid has 0") {
		t.Errorf("nobody is ready, and the time is up: status %d: %s", status, errs.String())
	}
}
