package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
	"github.com/granary-oci/granary/simtest/sites"
)

// bench is what is measured of images over a thin line.
type bench struct {
	runs                              int
	subjects, rows, by, granary, work string
	quiet                             time.Duration
	told                              *figures.Set
}

func (b *bench) flags(f *flag.FlagSet) {
	f.IntVar(&b.runs, "runs", 1, "with -line, how often each row is run")
	f.StringVar(&b.subjects, "subjects", "debian,npm,model", "with -line, of which images")
	f.StringVar(&b.rows, "rows", names(rows), "with -line, what to run")
	f.StringVar(&b.by, "by", "quic", "with -line, how the site reaches the hub: quic, tcp or url")
	f.StringVar(&b.work, "work", "", "with -line, where nodes store what they have, 8 GB at the most (default: as -dir)")
	f.DurationVar(&b.quiet, "quiet", 8*time.Second, "with -line, how long nothing is to come before the snapshotter is taken to have the older version")
	b.told = figures.Flag(f)
	f.StringVar(&b.granary, "granary", "", "with -line, the binary (default: built from the source)")
}

func names(all []row) string {
	var names []string
	for _, r := range all {
		names = append(names, r.name)
	}
	return strings.Join(names, ",")
}

// run prints a table.
func (b *bench) run(ctx context.Context, dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to make network namespaces")
	}
	if b.granary == "" {
		b.granary = filepath.Join(dir, "granary")
		if err := netns.BuildGranary(ctx, b.granary); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, b.told.Write()) }()
	fmt.Printf("%s, line of %d Mbit/s and %v, by %s, medians of %d\n", time.Now().Format(time.DateOnly), sites.Rate, sites.Trip, b.by, b.runs)
	for _, s := range subjects {
		if !slices.Contains(strings.Split(b.subjects, ","), s.name) {
			continue
		}
		if err := b.measure(ctx, dir, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// measure prints what a subject costs.
func (b *bench) measure(ctx context.Context, dir string, s subject) (err error) {
	l, err := newLab(ctx, b, dir, s)
	defer func() {
		if l != nil {
			l.close(err == nil)
		}
	}()
	if err != nil {
		return err
	}
	fmt.Printf("\n%s: an image of %.1f MB, of which layers of %.1f MB are new; chunks that are new have %.2f MB in zstd\n\n", s.title, mb(int(l.newer.Size)), mb(int(l.newer.changed(l.older))), mb(l.bound))
	fmt.Println("| | toward the site, MB | back, MB | from the parent by the ledger, MB | s | × the new chunks |\n|---|--:|--:|--:|--:|--:|")
	for _, r := range rows {
		if !slices.Contains(strings.Split(b.rows, ","), r.name) {
			continue
		}
		if why := r.missing(); why != nil {
			fmt.Fprintf(os.Stderr, "%s is left out: %v\n", r.name, why)
			continue
		}
		var results [][]part
		for range b.runs {
			parts, err := l.run(ctx, r)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			results = append(results, parts)
		}
		if err := l.forget(r.before); err != nil {
			return err
		}
		for i, p := range results[0] {
			fmt.Println(l.line(r.title+p.until, results, i))
			l.tell(b.told, r.title+p.until, results, i)
		}
	}
	return nil
}

// line is one of a table: medians of a part of all runs.
func (l *lab) line(title string, results [][]part, i int) string {
	median := func(of func(sites.Outcome) float64) float64 {
		var all []float64
		for _, parts := range results {
			all = append(all, of(parts[i].Outcome))
		}
		return figures.Median(all)
	}
	toward := median(func(o sites.Outcome) float64 { return float64(o.All) })
	return fmt.Sprintf("| %s | %.2f | %.2f | %.2f | %.1f | %.2f |", title, toward/1e6,
		median(func(o sites.Outcome) float64 { return float64(o.Back) })/1e6,
		median(func(o sites.Outcome) float64 { return float64(o.Counted) })/1e6,
		median(func(o sites.Outcome) float64 { return o.Took.Seconds() }), toward/float64(l.bound))
}

// tell adds the figures of a part of all runs. Ways are seen beside the first, by which each blob that is new is pulled.
func (l *lab) tell(told *figures.Set, title string, results [][]part, i int) {
	toward, took := figures.Measurement{Name: l.subject.title + ": toward the site", Unit: "MB"}, figures.Measurement{Name: l.subject.title + ": time", Unit: "s"}
	for _, parts := range results {
		told.Add(toward, title, float64(parts[i].All)/1e6)
		told.Add(took, title, parts[i].Took.Seconds())
	}
	if title != rows[0].title {
		told.Compare(toward, title, rows[0].title)
		told.Compare(took, title, rows[0].title)
	}
}

// lab is a site, a hub and a registry with an image.
type lab struct {
	*sites.Lab
	granary string
	quiet   time.Duration // after which the snapshotter fetches nothing more by itself
	dir     string        // of all that a run makes
	subject subject

	older, newer *image
	other        *sites.Image // has nothing in common with it
	bound        int          // bytes of the new chunks, as they are sent
}

// newLab makes a lab whose registry has both versions of the image.
func newLab(ctx context.Context, b *bench, dir string, s subject) (l *lab, err error) {
	l = &lab{granary: b.granary, quiet: b.quiet, subject: s}
	if l.dir, err = os.MkdirTemp(cmp.Or(b.work, dir), "run-"); err != nil {
		return l, err
	}
	was, err := s.layers(ctx, dir, older)
	if err != nil {
		return l, err
	}
	is, err := s.layers(ctx, dir, newer)
	if err != nil {
		return l, err
	}
	if l.Lab, err = sites.New(ctx, sites.Config{Dir: l.dir, Granary: b.granary, By: []string{b.by}, Spare: 1}); err != nil {
		return l, err
	}
	if l.older, err = l.push(older.tag, was); err != nil {
		return l, err
	}
	if l.newer, err = l.push(newer.tag, is); err != nil {
		return l, err
	}
	l.bound, err = bound(was, is)
	return l, err
}

// push puts a version into the registry.
func (l *lab) push(tag string, tars []string) (*image, error) {
	files, err := contentsOf(tars)
	if err != nil {
		return nil, err
	}
	return push(l.Registry, l.subject.name, tag, ordinary, tars, files)
}

// inStargz returns a version as eStargz, and puts it into the registry as such.
func (l *lab) inStargz(of *image) (*image, error) {
	return push(l.Registry, l.subject.name+"-stargz", of.Tag, stargz, of.tars, of.files)
}

// fillHub has the hub pull both versions, once, and waits until it knows all that it tells of them.
func (l *lab) fillHub(ctx context.Context) (err error) {
	if l.other != nil {
		return nil
	}
	p := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{'o'}).Read(p)
	if l.other, err = l.Registry.PutImage("other", older.tag, []byte("{}"), []ocispec.Descriptor{l.Registry.PutBlob("other", ocispec.MediaTypeImageLayer, p)}); err != nil {
		return err
	}
	for _, img := range []*sites.Image{l.other, l.older.Image, l.newer.Image} {
		if err := img.Pull(ctx, l.Hub.Space, sites.HubURL); err != nil {
			return err
		}
	}
	return l.Hub.Settled(ctx)
}

// fillHubWithStargz is fillHub for both versions as eStargz.
func (l *lab) fillHubWithStargz(ctx context.Context) error {
	for _, of := range []*image{l.older, l.newer} {
		img, err := l.inStargz(of)
		if err != nil {
			return err
		}
		if err := img.Pull(ctx, l.Hub.Space, sites.HubURL); err != nil {
			return err
		}
	}
	return l.Hub.Settled(ctx)
}

// close ends all. Logs of what has failed stay.
func (l *lab) close(well bool) {
	if l.Lab != nil {
		l.Close()
	}
	netns.UnmountBelow(l.dir)
	if well {
		_ = os.RemoveAll(l.dir)
	}
}

func (l *lab) site() *sites.Site { return l.Sites[0] }

func (l *lab) log(name string) string { return filepath.Join(l.dir, name+".log") }
