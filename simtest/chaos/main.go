// Command chaos breaks a cluster while clients pull from it, and finds out whether they notice.
//
//	go run ./simtest/chaos [-for 20m] [-seed N] [-nodes 5] [-fault NAME] [-previous FILE|COMMIT] [-loopback] [-work DIR]
//
// A registry in this process has images, of which a third are private, and new ones all the time. Nodes are real processes, each in a
// network namespace with a disk of its own; without root, or with -loopback, they are at addresses of the loopback, and faults that take root
// are left out, with the reason. Eight clients pull what is drawn for them from nodes that are drawn for them: images, manifests, blobs and parts of
// blobs, and what they have no right to. They know each byte. What goes wrong meanwhile, and when, follows from the seed alone (see the table
// in faults.go); it is printed as it happens. Node 1 is never killed, node 2 hashes what it reads each time, node 3 has a small store, and
// the last one is this program, for its clock to be set. Seeds that are even have all kinds of corrupt members, and nodes with
// --unproven-ranges=upstream; odd ones have the default, by which parts of blobs that nobody has hashed rest on members' word, and no member
// that signs lies.
//
// A client goes on where a body broke off, and tries again when there is no connection, four times in all; an answer is the last word.
//
// The run fails if
//
//   - a client gets wrong bytes, or too few, with a clean end;
//   - a client sees an error that it would not have seen at a healthy registry, while there was somebody to be asked: [history.excuse]
//     says when there was not;
//   - somebody gets anything private who may not have it;
//   - after the load, once all faults are undone, anything that the registry has is not served right by each node;
//   - goroutines, file descriptors, memory or disk of a node have grown, beyond what [gauges] and its store may;
//   - more bytes have left the registry than [lab.bound] says;
//   - a node has held a member to be at fault that was not corrupt, nor had files that were.
//
// It takes ip and tc, for root. The exit status is 1 if the run failed; then logs stay in -work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
	"github.com/granary-oci/granary/simtest/peers/hostile"
)

// options are the command line.
type options struct {
	length   time.Duration
	seed     uint64
	count    int    // of nodes
	previous string // what nodes are upgraded from
	work     string
	loopback bool
	only     string // faults with this in their names
}

func main() {
	playRole(os.Args[1:])
	var o options
	flag.DurationVar(&o.length, "for", 20*time.Minute, "how long things go wrong")
	flag.Uint64Var(&o.seed, "seed", 0, "what goes wrong, and when; 0 is a new one, which is printed")
	flag.IntVar(&o.count, "nodes", 5, "how many nodes, 4 to 16")
	flag.StringVar(&o.previous, "previous", "", "what nodes are upgraded from: a binary, or a commit of this repository (default: this one, with another version)")
	flag.StringVar(&o.work, "work", filepath.Join(os.TempDir(), fmt.Sprint("granary-chaos-", os.Geteuid())), "where logs are kept")
	flag.BoolVar(&o.loopback, "loopback", false, "use no namespaces, though this is root")
	flag.StringVar(&o.only, "fault", "", "only faults whose names have this in them")
	flag.Parse()
	if o.seed == 0 {
		o.seed = 1 + rand.Uint64N(1e9)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// playRole is the program that a process of a lab is, if args name one.
func playRole(args []string) {
	if len(args) == 0 {
		return
	}
	switch args[0] {
	case "clocked":
		os.Exit(serveClocked(args[1:]))
	case "hostile":
		os.Exit(hostile.Main(args[1:]))
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	if o.count < minNodes || o.count > 16 {
		return fmt.Errorf("-nodes is from %d to 16", minNodes)
	}
	fmt.Fprintf(out, "seed %d: %s\n", o.seed, o.again())
	l, err := newLab(ctx, o, out)
	if err == nil {
		err = l.run(ctx)
	}
	l.close()
	if err == nil && l.failures > 0 {
		err = fmt.Errorf("%d failures, with seed %d", l.failures, o.seed)
	}
	if err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, l.logs)
	}
	return os.RemoveAll(l.logs)
}

// again is the command that does the same once more.
func (o options) again() string {
	s := fmt.Sprintf("go run ./simtest/chaos -seed %d -for %v -nodes %d", o.seed, o.length, o.count)
	if o.only != "" {
		s += fmt.Sprintf(" -fault %q", o.only)
	}
	if o.previous != "" {
		s += " -previous " + o.previous
	}
	if o.loopback {
		s += " -loopback"
	}
	return s
}

const (
	warmUp = 8 * time.Second // of load before anything goes wrong
	cool   = 8 * time.Second // after a load, for connections to be given up
)

// run is the load, the faults, and what is asked afterwards.
func (l *lab) run(ctx context.Context) error {
	can, not := l.possible()
	for _, why := range not {
		l.log("left out: %s", why)
	}
	l.log("parts of blobs that have not been checked rest on %s", l.unproven)
	next := 0
	for ; next < liveImages/2; next++ {
		l.push(next)
	}
	next, err := l.loadFor(ctx, warmUp, next, nil)
	if err != nil {
		return err
	}
	if err := l.rest(ctx); err != nil {
		return err
	}
	before, err := l.measure(ctx)
	if err != nil {
		return err
	}
	if _, err := l.loadFor(ctx, l.length, next, draw(l.seed, l.length, l.count, can)); err != nil {
		return err
	}
	from := l.history.now()
	if err := l.together(ctx, 2*time.Minute); err != nil {
		l.fail(nil, from, l.history.now(), "after all faults: %v", err)
	}
	if err := l.recovered(ctx); err != nil {
		return err
	}
	l.verify(ctx)
	if err := l.rest(ctx); err != nil {
		return err
	}
	after, err := l.measure(ctx)
	if err != nil {
		return err
	}
	l.grown(before, after)
	l.disks()
	l.bounded()
	for _, what := range slices.Sorted(maps.Keys(l.counts)) {
		l.log("%d %s", l.counts[what], what)
	}
	return nil
}

// recovered waits until no node leaves the registry alone any more.
func (l *lab) recovered(ctx context.Context) (err error) {
	for now := l.history.now(); err == nil && l.history.registryIll(now, now); now = l.history.now() {
		err = netns.Pause(ctx, time.Second)
	}
	return err
}

// rest waits until what a load has left behind is given up.
func (l *lab) rest(ctx context.Context) error { return netns.Pause(ctx, cool) }

// loadFor has clients pull for so long, while events happen.
func (l *lab) loadFor(ctx context.Context, length time.Duration, first int, events []event) (next int, err error) {
	within, stop := context.WithTimeout(ctx, length)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { l.watchBlame(within) })
	var mu sync.Mutex
	for lane := range lanes {
		all.Go(func() {
			e := l.happen(within, lane, events)
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, e)
			if e != nil {
				stop()
			}
		})
	}
	next = l.load(within, first)
	all.Wait()
	return next, errors.Join(err, ctx.Err())
}

// happen lets the faults of a lane happen until ctx ends. Each that has begun is undone.
func (l *lab) happen(ctx context.Context, lane lane, events []event) error {
	began := time.Now()
	for _, e := range events {
		f := named(e.Fault)
		if f.lane != lane {
			continue
		}
		if netns.Pause(ctx, e.At-time.Since(began)) != nil {
			return nil
		}
		l.log("%s", e)
		undo, err := f.apply(l, context.WithoutCancel(ctx), e)
		if err == nil {
			_ = netns.Pause(ctx, e.Lasts) // it is over with the load
		}
		if undo != nil {
			err = errors.Join(err, undo(context.WithoutCancel(ctx)))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
		l.log("%s is over", e.Fault)
	}
	return nil
}

// verify pulls everything from each node, when nothing is wrong any more and the registry is not left alone by anybody.
func (l *lab) verify(ctx context.Context) {
	for _, n := range l.nodes {
		c := &client{lab: l, rng: rand.New(rand.NewPCG(l.seed, 0))}
		for _, img := range l.images.all() {
			c.pull(ctx, n, img)
		}
	}
}
