package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/programs"
)

// TestEdges judges bytes and errors, not times.
func TestEdges(t *testing.T) {
	l := newTestLab(t)
	cold := l.registry.push(1, 32e6)
	t.Run("each line carries a cold image once", func(t *testing.T) {
		all, err := l.pull(t.Context(), cold)
		judge(t, l, cold, all, err, 1.05)
	})
	t.Run("lines that flap", func(t *testing.T) {
		img := l.registry.push(2, 32e6)
		all, err := l.pullFlapping(t.Context(), img)
		judge(t, l, img, all, err, 1.07)
	})
	t.Run("all lines are cut", func(t *testing.T) {
		l.cut(true)
		l.hub.Stop()
		_ = l.registry.server.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		g, within := errgroup.WithContext(ctx)
		for _, s := range l.sites {
			g.Go(func() error { return l.join(within, s) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		all, err := l.pull(ctx, cold)
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range all {
			t.Logf("by %s: %v", l.sites[i].by, o.took)
		}
	})
}

// judge checks what a pull has cost: all that came out of a line is at most so many images, and
// no more than 2 % of the image came twice.
func judge(t *testing.T, l *lab, img *image, all []outcome, err error, limit float64) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range all {
		images := func(n int64) float64 { return float64(n) / float64(img.size) }
		t.Logf("by %s: %v, %.2f of the bound; %.3f images, %.3f with headers", l.sites[i].by, o.took, o.took.Seconds()/bound(img).Seconds(), images(o.counted), images(o.all))
		if images(o.all) > limit || images(o.all) < 1 {
			t.Errorf("by %s %d bytes came out of the line for an image of %d", l.sites[i].by, o.all, img.size)
		}
		if images(o.counted) > 1.02 || images(o.counted) < 1 {
			t.Errorf("by %s %d bytes came from the parent, for an image of %d", l.sites[i].by, o.counted, img.size)
		}
	}
}

// newTestLab makes a lab whose sites have three nodes, and a machine for another one.
func newTestLab(t *testing.T) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	programs.NeedRoot(t)
	for _, name := range []string{"ip", "tc", "nft"} {
		programs.OfSystem(t, name)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		programs.Missing(t, "/dev/net/tun")
	}
	dir := t.TempDir()
	if err := programs.Build(dir, "cmd/granary"); err != nil {
		t.Fatal(err)
	}
	l, err := newLab(t.Context(), dir, filepath.Join(dir, "granary"), []string{"quic", "tcp"}, 3, 1)
	t.Cleanup(func() {
		l.close()
		logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		for _, log := range logs {
			if out, err := os.ReadFile(log); err == nil && t.Failed() {
				t.Logf("end of %s:\n%s", filepath.Base(log), out[max(0, len(out)-3000):])
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}
