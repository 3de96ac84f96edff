package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// shared is the lab of all tests, made once, or why there is none.
var (
	shared    *lab
	sharedErr error
	// disk is what the images look like where umoci has unpacked them.
	disk map[string]*found
)

// TestMain makes the images.
func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("layers: skipped, it takes minutes")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	made, err := os.MkdirTemp("", "granary-layers-made-")
	if sharedErr = err; err == nil {
		sharedErr = prepare(ctx, made)
	}
	code := m.Run()
	if shared != nil {
		err = shared.close()
	}
	if err := errors.Join(err, os.RemoveAll(made)); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "layers:", err)
		code = 1
	}
	os.Exit(code)
}

// prepare makes the lab. The layers are made by the command, for to compress them takes
// many times as long in a program that looks for races.
func prepare(ctx context.Context, dir string) (err error) {
	if err := check(); err != nil {
		return err
	}
	if os.Getenv("GRANARY_LAYERS") == "" {
		command := filepath.Join(dir, "layers")
		if err := buildProgram(ctx, command, "simtest/layers"); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, command, "-make", dir, "-small").CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		if err := os.Setenv("GRANARY_LAYERS", dir); err != nil {
			return err
		}
	}
	if shared, err = newLab(ctx, true); err != nil {
		return err
	}
	disk, err = shared.unpack(ctx)
	return err
}

// theLab returns the lab, or skips the test for want of something; where CI=true is
// set everything is there.
func theLab(t *testing.T) *lab {
	t.Helper()
	var missing *missingError
	if errors.As(sharedErr, &missing) && os.Getenv("CI") != "true" {
		t.Skip(missing)
	}
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

// serve starts a node, which ends with the test.
func serve(t *testing.T, more ...string) *node {
	t.Helper()
	n, err := theLab(t).startNode(t.Context(), more...)
	return running(t, n, err)
}

// running ends a node with the test. If that fails, the end of its log is shown.
func running(t *testing.T, n *node, err error) *node {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.end(); err != nil {
			t.Errorf("the node ended with %v", err)
		}
		if t.Failed() {
			t.Logf("end of the log of the node:\n%s", n.output())
		}
	})
	return n
}

// run runs a command of granary through the node.
func (n *node) mustRun(t *testing.T, command string, args ...string) []byte {
	t.Helper()
	out, err := n.run(t.Context(), command, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually waits, for a while, for something to become true.
func (n *node) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 300 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}
