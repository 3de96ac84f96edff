// Command large measures large artifacts: one blob of any media type, such as a model.
//
//	go run ./simtest/large [-size 10GiB] [-dir DIR] [-rounds 5] [-only alone,delta] [-figures FILE]
//
// alone is one node, before a registry of which each connection has 20 MB/s and a delay of
// 40 ms, beside one connection to the registry. delta is two members of a cluster: one has the
// second version of a model, in which 5 % of the chunks of 1 MiB are others than in the first,
// at places all over it; the other one has the first version, and pulls the second. It takes
// three times the size in DIR, which is left empty.
//
// The models are made as they are read, the nodes are processes of their own, and the registry
// and the clients are this one.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/granary-oci/granary/simtest/figures"
)

type options struct {
	size   int64
	dir    string
	rounds int
	only   []string
	told   *figures.Set
}

func main() {
	if text := os.Getenv(asNode); text != "" {
		exit(serve(text))
	}
	size := flag.String("size", "10GiB", "of a `model`")
	dir := flag.String("dir", os.TempDir(), "where nodes keep it")
	rounds := flag.Int("rounds", 5, "of a node alone; what is printed is the median")
	only := flag.String("only", "alone,delta", "measurements to take")
	told := figures.Flag(flag.CommandLine)
	flag.Parse()
	n, err := humanize.ParseBytes(*size)
	if err == nil {
		err = report(options{int64(n), *dir, max(1, *rounds), strings.Split(*only, ","), told})
	}
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "large:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func report(o options) (err error) {
	defer func() { err = errors.Join(err, o.told.Write()) }()
	if o.dir, err = os.MkdirTemp(o.dir, "granary-large-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	for _, m := range []struct {
		name    string
		measure func(options) error
	}{{"alone", alone}, {"delta", delta}} {
		if slices.Contains(o.only, m.name) {
			if err := m.measure(o); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	return nil
}

// alone measures one node before a registry with slow connections.
func alone(o options) error {
	const size, rate, delay = 256 << 20, 20e6, 40 * time.Millisecond
	slowly := figures.Measurement{Name: fmt.Sprintf("a blob of %s from a registry of which each connection has %.0f MB/s, after %v", humanize.IBytes(size), rate/1e6, delay), Unit: "MB/s"}
	r, err := startRegistry(delay, rate)
	if err != nil {
		return err
	}
	var direct, through []float64
	for round := range o.rounds {
		m, err := newModel(size, func(int64) bool { return round%2 == 1 })
		if err != nil {
			return err
		}
		r.push("v1", m)
		p, err := start(settings{Data: filepath.Join(o.dir, fmt.Sprint("alone", round)), Registry: r.url})
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := p.fetch(m); err != nil {
			return err
		}
		through = append(through, size/1e6/time.Since(begun).Seconds())
		o.told.Add(slowly, "granary", through[len(through)-1])
		if err := p.end(syscall.SIGTERM); err != nil {
			return err
		}
		if err := os.RemoveAll(p.Data); err != nil {
			return err
		}
		if round == 0 { // it is the same each time
			o.told.Compare(slowly, "granary", "one connection")
			begun = time.Now()
			if err := (&process{url: r.url}).fetch(m); err != nil {
				return err
			}
			direct = append(direct, size/1e6/time.Since(begun).Seconds())
			o.told.Add(slowly, "one connection", direct[0])
		}
	}
	slices.Sort(through)
	fmt.Printf("a registry of which each connection has %.0f MB/s, after %v: one connection %.0f MB/s, a node alone %.0f MB/s (%.0f to %.0f)\n",
		rate/1e6, delay, direct[0], through[len(through)/2], through[0], through[len(through)-1])
	return nil
}

// pull is what it took to read a model through a node.
type pull struct {
	took, cpu       time.Duration
	peers, upstream int64 // bytes
	peak            int64
}

func (p *process) pull(m *model) (pull, error) {
	before, err := p.status()
	if err != nil {
		return pull{}, err
	}
	cpu, begun := p.cpu(), time.Now()
	if err := p.fetch(m); err != nil {
		return pull{}, err
	}
	took := time.Since(begun)
	after, err := p.status()
	if err != nil {
		return pull{}, err
	}
	return pull{took, p.cpu() - cpu, after.Cluster.Received - before.Cluster.Received, after.Received - before.Received, p.peak()}, nil
}

// delta measures what a member pulls of a model of which it has another version.
func delta(o options) error {
	r, err := startRegistry(0, 0)
	if err != nil {
		return err
	}
	v1, err1 := newModel(o.size, nil)
	v2, err2 := newModel(o.size, func(i int64) bool { return i*11%20 == 3 })
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	changed := int64(0)
	for i := range (o.size + chunkSize - 1) / chunkSize {
		if v2.changed(i) {
			changed++
		}
	}
	r.push("v1", v1)
	r.push("v2", v2)
	secret := filepath.Join(o.dir, "secret")
	if err := os.WriteFile(secret, []byte("of a measurement of large artifacts"), 0o600); err != nil {
		return err
	}
	fmt.Printf("two versions of a model of %s, which differ in %d chunks (%.2f %%)\n\n", humanize.IBytes(uint64(o.size)), changed, 100*float64(changed)*chunkSize/float64(o.size))
	a, err := start(settings{Data: filepath.Join(o.dir, "a"), Registry: r.url, Secret: secret})
	if err != nil {
		return err
	}
	defer func() { _ = a.end(syscall.SIGTERM) }()
	first, err := a.pull(v2)
	if err != nil {
		return err
	}
	fmt.Printf("A has v2 from the registry: %s\n", first)
	// B gets v1 while it is alone, so that A has nothing of it.
	alone := settings{Data: filepath.Join(o.dir, "b"), Registry: r.url, Secret: secret}
	b, err := start(alone)
	if err != nil {
		return err
	}
	if first, err = b.pull(v1); err != nil {
		return err
	}
	fmt.Printf("B has v1 from the registry: %s\n", first)
	if err := b.end(syscall.SIGTERM); err != nil {
		return err
	}
	joined := alone
	joined.Join = a.gossip
	if b, err = start(joined); err != nil {
		return err
	}
	defer func() { _ = b.end(syscall.SIGTERM) }()
	if err := b.meets(2); err != nil {
		return err
	}
	again, err := b.pull(v2)
	if err != nil {
		return err
	}
	fmt.Printf("B pulls v2: %s; %.2f %% of it\n", again, 100*float64(again.peers+again.upstream)/float64(o.size))
	o.tell(first, again)
	return nil
}

// tell adds the figures of a pull of the newer version, beside the one of the older version from the registry.
func (o options) tell(whole, changed pull) {
	what := fmt.Sprintf("a new version of a model of %s, of which 5 %% are new: ", humanize.IBytes(uint64(o.size)))
	for _, m := range []struct {
		what, unit string
		value      func(pull) float64
	}{
		{"moved", "MB", func(p pull) float64 { return float64(p.peers+p.upstream) / 1e6 }},
		{"time", "s", func(p pull) float64 { return p.took.Seconds() }},
		{"CPU time", "s", func(p pull) float64 { return p.cpu.Seconds() }},
		{"peak of resident memory", "MiB", func(p pull) float64 { return float64(p.peak >> 20) }},
	} {
		by := figures.Measurement{Name: what + m.what, Unit: m.unit}
		o.told.Add(by, "granary", m.value(changed))
		o.told.Add(by, "the older version, all of it from the registry", m.value(whole))
		o.told.Compare(by, "granary", "the older version, all of it from the registry")
	}
}

func (p pull) String() string {
	return fmt.Sprintf("%.1f s, %.1f s of CPU time, %d bytes from members, %d from the registry, peak of %d MiB resident", p.took.Seconds(), p.cpu.Seconds(), p.peers, p.upstream, p.peak>>20)
}

// meets waits until a member knows of n, and they have told each other what they have.
func (p *process) meets(n int) error {
	for range 600 {
		s, err := p.status()
		if err == nil && len(s.Cluster.Members) == n {
			time.Sleep(3 * time.Second)
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("it does not find %d members", n)
}
