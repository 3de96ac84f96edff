package main

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/toc"
	granarygzip "github.com/granary-oci/granary/toc/gzip"
	"github.com/granary-oci/granary/toc/tarball"
)

func newTable() *tabwriter.Writer {
	return tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
}

// reportFormats prints what it takes to look into the image in each format.
func (l *lab) reportFormats(ctx context.Context, runs int, told *figures.Set) error {
	fmt.Printf("Through a node that has nothing of the image: time, requests, and bytes that left the registry, for the list of all files,\nthen 4 KiB, then 40 MiB (median of %d)\n\n", runs)
	w := newTable()
	fmt.Fprintln(w, "format\timage\tlast layer\tlist\t\t\t4 KiB\t\t\t40 MiB\t\t\t")
	for _, f := range formats {
		var all []costs
		for range runs {
			c, err := l.measure(ctx, f.name)
			if err != nil {
				return err
			}
			all = append(all, c)
			c.tell(told, f.name)
		}
		img := l.images[f.name]
		fmt.Fprintf(w, "%s\t%s\t%s\t", f.name, mib(img.size()), mib(img.top().Size))
		for _, of := range []func(costs) cost{func(c costs) cost { return c.list }, func(c costs) cost { return c.small }, func(c costs) cost { return c.large }} {
			c := median(all, of)
			fmt.Fprintf(w, "%d ms\t%d\t%s\t", c.took.Milliseconds(), c.requests, mib(c.bytes))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// tell adds the figures of a run.
func (c costs) tell(told *figures.Set, format string) {
	for _, of := range []struct {
		what string
		cost
	}{{"to list all files", c.list}, {"then to read 4 KiB", c.small}, {"then to read 40 MiB", c.large}} {
		told.Add(figures.Measurement{Name: of.what, Unit: "ms"}, format, float64(of.took.Milliseconds()))
		told.Add(figures.Measurement{Name: of.what, Unit: "MB"}, format, float64(of.bytes)/1e6)
	}
}

func mib(n int64) string { return fmt.Sprintf("%.2f MiB", float64(n)/(1<<20)) }

// median returns the median of each value.
func median(all []costs, of func(costs) cost) (m cost) {
	middle := func(value func(cost) int64) int64 {
		var values []int64
		for _, c := range all {
			values = append(values, value(of(c)))
		}
		return medianOf(values)
	}
	m.requests = middle(func(c cost) int64 { return c.requests })
	m.bytes = middle(func(c cost) int64 { return c.bytes })
	m.took = time.Duration(middle(func(c cost) int64 { return int64(c.took) }))
	return m
}

func medianOf(values []int64) int64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// way is one way to read a layer in gzip.
type way struct {
	name string
	read func(r io.Reader) error
}

// reportGzip prints what the index of the ordinary image's base layer takes, beside
// gunzip alone.
func (l *lab) reportGzip(runs int, told *figures.Set) error {
	layer, err := os.ReadFile(l.path(l.images["gzip"].layers[0].Digest))
	if err != nil {
		return err
	}
	var index *granarygzip.Index
	ways := []way{
		{"gunzip, klauspost/compress", func(r io.Reader) error {
			z, err := gzip.NewReader(r)
			if err == nil {
				_, err = io.Copy(io.Discard, z)
			}
			return err
		}},
		{"gunzip, standard library", func(r io.Reader) error {
			z, err := stdgzip.NewReader(r)
			if err == nil {
				_, err = io.Copy(io.Discard, z)
			}
			return err
		}},
		{"gunzip and table, klauspost/compress", func(r io.Reader) error {
			z, err := gzip.NewReader(r)
			if err == nil {
				_, err = tarball.Scan(z)
			}
			return err
		}},
		{"index", func(r io.Reader) (err error) {
			index, err = granarygzip.Build(r, tarball.Scan)
			return err
		}},
	}
	onePass := figures.Measurement{Name: "one pass over a layer in gzip", Unit: "s"}
	told.Compare(onePass, "index", ways[0].name, ways[1].name)
	took := make([][]int64, len(ways))
	for range runs {
		for i, way := range ways {
			begin := time.Now()
			if err := way.read(bytes.NewReader(layer)); err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			took[i] = append(took[i], int64(time.Since(begin)))
			told.Add(onePass, way.name, time.Since(begin).Seconds())
		}
	}
	var encoded bytes.Buffer
	if err := index.Encode(&encoded); err != nil {
		return err
	}
	fmt.Printf("\nAn ordinary layer, %s of tar in %s of gzip: one pass over it (median of %d)\n\n", mib(index.TarSize), mib(int64(len(layer))), runs)
	w := newTable()
	base := float64(medianOf(took[0]))
	for i, way := range ways {
		m := float64(medianOf(took[i]))
		fmt.Fprintf(w, "%s\t%.0f ms\t%.2f ×\t\n", way.name, m/1e6, m/base)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	windows := 0
	for _, p := range index.Points {
		windows += len(p.Window)
	}
	fmt.Printf("\nThe index is %s, %.2f %% of the tar: %d points, whose windows are %s, and the table of %d entries\n", mib(int64(encoded.Len())),
		100*float64(encoded.Len())/float64(index.TarSize), len(index.Points), mib(int64(windows)), index.Table.Len())
	return nil
}

// reportMemory prints what a large table takes.
func reportMemory(entries int) error {
	text, names := tableOf(entries)
	before := heap()
	begin := time.Now()
	t, err := toc.DecodeJSON(bytes.NewReader(text), 1<<40)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	table := heap() - before
	tree, err := toc.Overlay([]*toc.Layer{{TOC: t}})
	if err != nil {
		return err
	}
	all := heap() - before
	n := int64(tree.Len())
	fmt.Printf("\nA table of %d files, %s as JSON, opens in %d ms. It takes %s, %d bytes for each file, of which %d are its name;\nlaid over others %s, %d bytes for each\n",
		n, mib(int64(len(text))), took.Milliseconds(), mib(table), table/n, names/n, mib(all), all/n)
	runtime.KeepAlive(text)
	runtime.KeepAlive(tree)
	return nil
}

// heap returns the bytes in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// tableOf returns the table of a layer of n files as JSON, and the bytes of all names.
func tableOf(n int) (text []byte, names int64) {
	var b bytes.Buffer
	b.WriteString(`{"version":1,"entries":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		name := fmt.Sprintf("usr/lib/package-%04d/module-%02d/file-%02d.js", i/2000, i/40%50, i%40)
		names += int64(len(name))
		fmt.Fprintf(&b, `{"name":%q,"type":"reg","size":1000,"modtime":"2025-10-09T08:53:20Z","mode":420,"digest":"sha256:%064x","offset":%d,"chunkDigest":"sha256:%064x"}`,
			name, i+1, i*500, i+1)
		b.WriteByte('\n')
	}
	b.WriteString("]}")
	return b.Bytes(), names
}
