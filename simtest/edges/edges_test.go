package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/programs"
	"github.com/granary-oci/granary/simtest/sites"
)

// TestEdges judges bytes and errors, not times.
func TestEdges(t *testing.T) {
	l := newTestLab(t)
	var cold *sites.Image
	t.Run("each line carries a cold image once", func(t *testing.T) { cold = l.judge(t, 1, l.pull, 1.05) })
	t.Run("lines that flap", func(t *testing.T) { l.judge(t, 11, l.pullFlapping, 1.07) })
	t.Run("all lines are cut", func(t *testing.T) {
		if cold == nil {
			t.Fatal("the sites have nothing")
		}
		l.Cut(true)
		defer l.Cut(false)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		g, within := errgroup.WithContext(ctx)
		for _, s := range l.Sites {
			g.Go(func() error { return l.Join(within, s) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		all, err := l.pull(ctx, cold)
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range all {
			t.Logf("by %s: %v", l.Sites[i].By, o.Took)
		}
	})
}

// judge has the sites pull images, the first of which has this seed, until with one all that came out of each line is at
// most so many images, and no more than 2 % of it came twice: on a busy machine a member may be silent for so long that another
// one asks as well, once.
func (l *lab) judge(t *testing.T, seed byte, pull func(context.Context, *sites.Image) ([]sites.Outcome, error), limit float64) *sites.Image {
	t.Helper()
	for try := range byte(3) {
		img, err := push(l.Registry, seed+try, 32e6)
		if err != nil {
			t.Fatal(err)
		}
		all, err := pull(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		once := true
		for i, o := range all {
			images := func(n int64) float64 { return float64(n) / float64(img.Size) }
			t.Logf("by %s: %v, %.2f of the bound; %.3f images, %.3f with headers", l.Sites[i].By, o.Took, o.Took.Seconds()/bound(img).Seconds(), images(o.Counted), images(o.All))
			if o.All < img.Size || o.Counted < img.Size {
				t.Fatal("less than the image has come")
			}
			once = once && images(o.All) <= limit && images(o.Counted) <= 1.02
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
	programs.NeedLines(t)
	dir := t.TempDir()
	if err := programs.Build(dir, "cmd/granary"); err != nil {
		t.Fatal(err)
	}
	l, err := newLab(t.Context(), sites.Config{Dir: dir, Granary: filepath.Join(dir, "granary"), By: []string{"quic", "tcp"}, Nodes: 3, Spare: 1})
	t.Cleanup(func() {
		l.Close()
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
