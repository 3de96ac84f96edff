package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/granary-oci/granary/simtest/images"
	"github.com/granary-oci/granary/simtest/programs"
)

// small is an image of 4 MB of text and noise, of which two files of sixteen change: one is another then, and of one a few bytes are.
var small = subject{name: "small", title: "small", layers: func(_ context.Context, folder string, v version) ([]string, error) {
	layer := filepath.Join(folder, "small-"+v.tag+".tar")
	return []string{layer}, images.Once(layer, func(to string) error { return writeTar(to, v, writeSmall) })
}}

func writeSmall(w *tree) error {
	for i := range byte(16) {
		seed, isNew := i, w.at.Unix() == int64(newer.epoch)
		if isNew && i == 3 {
			seed += 100
		}
		p := make([]byte, 250_000)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
		for at := range p[:100_000] {
			p[at] = 'a' + p[at]%16
		}
		for at := 0; isNew && i == 11 && at < len(p); at += 5_000 {
			p[at]++
		}
		err := w.file(fmt.Sprintf("usr/lib/file%d", i), 0o644, int64(len(p)), func(f io.Writer) error {
			_, err := f.Write(p)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// TestRows runs rows with a small image: all contents and digests are compared, and the line carries what is
// new, which gzip may pack better, and no more than all. Of what is made again, and of what is mounted at a site that has the older one, that
// is little more than the one file that is another: the other one is half of what is new by chunks.
func TestRows(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	programs.NeedLines(t)
	programs.NeedDevice(t, "/dev/fuse")
	dir := t.TempDir()
	if err := programs.Build(dir, "cmd/granary"); err != nil {
		t.Fatal(err)
	}
	l, err := newLab(t.Context(), &bench{by: "quic", granary: filepath.Join(dir, "granary")}, dir, small)
	t.Cleanup(func() { l.close(true) })
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.name == "time" {
			continue // what it decides is for proxy/rebuild to test: of so small an image it fetches all
		}
		t.Run(r.name, func(t *testing.T) {
			for _, name := range r.needs {
				programs.Tool(t, name)
			}
			l.judge(t, r)
		})
	}
}

// mostOfNew is how many times what is new may cross the line by a row that says so.
var mostOfNew = map[string]float64{"bytes": 0.75, "lazy-pulled": 0.85, "lazy-read": 0.85}

// judge runs a row, again where too much crosses the line: on a busy machine packets may be taken for lost.
func (l *lab) judge(t *testing.T, r row) {
	t.Helper()
	for range 3 {
		parts, err := l.run(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			t.Logf("%s%s: %+v; %.2f of %d", r.title, p.until, p.Outcome, float64(p.All)/float64(l.bound), l.bound)
		}
		all := parts[len(parts)-1].All
		if all < int64(l.bound)*4/10 {
			t.Fatalf("%d bytes came, and %d are new", all, l.bound)
		}
		limit := float64(l.newer.Size) * 1.25
		if of := mostOfNew[r.name]; of > 0 {
			limit = of * float64(l.bound)
		}
		if float64(all) <= limit {
			return
		}
	}
	t.Errorf("too much comes for an image of %d bytes, %d of which are new", l.newer.Size, l.bound)
}
