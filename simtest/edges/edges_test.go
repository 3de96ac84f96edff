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
	var cold *image
	t.Run("each line carries a cold image once", func(t *testing.T) { cold = l.judge(t, 1, l.pull, 1.05) })
	t.Run("lines that flap", func(t *testing.T) { l.judge(t, 11, l.pullFlapping, 1.07) })
	t.Run("all lines are cut", func(t *testing.T) {
		if cold == nil {
			t.Fatal("the sites have nothing")
		}
		l.cut(true)
		defer l.cut(false)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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

// judge has the sites pull images, the first of which has this seed, until with one all that came out of each line is at
// most so many images, and no more than 2 % of it came twice: on a busy machine a member may be silent for so long that another
// one asks as well, once.
func (l *lab) judge(t *testing.T, seed byte, pull func(context.Context, *image) ([]outcome, error), limit float64) *image {
	t.Helper()
	for try := range byte(3) {
		img := l.registry.push(seed+try, 32e6)
		all, err := pull(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		once := true
		for i, o := range all {
			images := func(n int64) float64 { return float64(n) / float64(img.size) }
			t.Logf("by %s: %v, %.2f of the bound; %.3f images, %.3f with headers", l.sites[i].by, o.took, o.took.Seconds()/bound(img).Seconds(), images(o.counted), images(o.all))
			if o.all < img.size || o.counted < img.size {
				t.Fatal("less than the image has come")
			}
			once = once && images(o.all) <= limit && images(o.counted) <= 1.02
		}
		if once {
			return img
		}
	}
	t.Error("much comes twice")
	return nil
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
