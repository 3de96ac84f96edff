// Command edges measures what parents are for: two sites of three nodes each, behind NAT and each at the
// end of a line of 50 Mbit/s and 80 ms, pull an image at once from a hub that has it, or has to get it.
//
//	go run ./simtest/edges [-runs 3] [-size 96000000] [-rows direct,cold,warm,flap,cut] [-by quic,tcp] [-work DIR] [-figures FILE]
//
// The hub is a node beside the registry. One site reaches it by QUIC, the other by TCP (or, with -by, at a URL), and neither
// reaches anything else. Each site has a cluster of its own. All clients begin together, one on the machine of
// each node; they fetch and hash. Rows are
//
//	direct  clients ask the registry itself through the lines, without any node
//	cold    through the nodes; the hub does not have the image
//	warm    the hub has it
//	flap    as cold, and the lines are down for 5 s, up for 5 s, and so on
//	cut     the sites have the image, and all lines are down
//
// A row tells how long the last client of a site took, beside the bound, the time that the bytes of one image take on
// the line, without any headers; and how much came out of the line toward the site, in images: as its nodes count it,
// without the headers of TCP, UDP and IP, and with these. Values are medians of the runs, each with an image of its own.
//
// It takes root, ip, tc and nft.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
	"github.com/granary-oci/granary/simtest/sites"
)

const flapEach = 5 * time.Second

// options are the command line.
type options struct {
	runs    int
	size    int64
	rows    string
	by      string
	work    string
	granary string
	more    string
	keep    bool
	told    *figures.Set
}

func main() {
	var o options
	flag.IntVar(&o.runs, "runs", 3, "how often each row is run")
	flag.Int64Var(&o.size, "size", 96e6, "bytes of the image")
	flag.StringVar(&o.rows, "rows", "direct,cold,warm,flap", "what to run")
	flag.StringVar(&o.by, "by", "quic,tcp", "how the sites reach the hub: quic, tcp or url, for one site each")
	flag.StringVar(&o.work, "work", filepath.Join(os.TempDir(), "granary-edges"), "where logs and what nodes store are kept")
	flag.StringVar(&o.granary, "granary", "", "the binary (default: built from the source)")
	flag.StringVar(&o.more, "edge-flags", "", "more settings of the edges' nodes, as --parents-only")
	flag.BoolVar(&o.keep, "keep", false, "keep logs (and stores) of a run that went well, too")
	o.told = figures.Flag(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "edges:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to make network namespaces")
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.work, "run-")
	if err != nil {
		return err
	}
	if o.granary == "" {
		o.granary = filepath.Join(dir, "granary")
		if err := netns.BuildGranary(ctx, o.granary); err != nil {
			return err
		}
	}
	l, err := newLab(ctx, sites.Config{Dir: dir, Granary: o.granary, By: strings.Split(o.by, ","), Nodes: 3, Flags: strings.Fields(o.more)})
	if err == nil {
		err = o.table(ctx, l)
	}
	l.Close()
	err = errors.Join(err, o.told.Write())
	if err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, dir)
	}
	if o.keep {
		fmt.Println("logs are in", dir)
		return nil
	}
	return os.RemoveAll(dir)
}

// newLab makes a lab. It is to be closed, even if this fails.
func newLab(ctx context.Context, cfg sites.Config) (*lab, error) {
	l, err := sites.New(ctx, cfg)
	return &lab{l}, err
}

// table runs the rows and prints them.
func (o *options) table(ctx context.Context, l *lab) error {
	fmt.Printf("%s, image of %.0f MB, lines of %d Mbit/s and %v\n", time.Now().Format(time.DateOnly), float64(o.size)/1e6, sites.Rate, sites.Trip)
	fmt.Println("row     by    seconds  bound  counted  payload  line")
	seed := byte(0)
	for _, name := range strings.Split(o.rows, ",") {
		runs := make([][]sites.Outcome, len(l.Sites))
		var limit time.Duration
		for range o.runs {
			seed++
			img, err := push(l.Registry, seed, o.size)
			if err != nil {
				return err
			}
			limit = bound(img)
			all, err := l.row(ctx, name, img)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			for i, one := range all {
				runs[i] = append(runs[i], one)
			}
		}
		for i, s := range l.Sites {
			print(name, s.By, runs[i], limit, o.size)
			o.tell(name, s.By, runs[i], limit)
		}
	}
	return nil
}

// row runs a row once.
func (l *lab) row(ctx context.Context, name string, img *sites.Image) ([]sites.Outcome, error) {
	switch name {
	case "direct":
		return l.pullDirect(ctx, img)
	case "cold":
		return l.pull(ctx, img)
	case "warm":
		if err := img.Pull(ctx, l.Hub.Space, sites.HubURL); err != nil {
			return nil, err
		}
		return l.pull(ctx, img)
	case "flap":
		return l.pullFlapping(ctx, img)
	case "cut":
		return l.pullCut(ctx, img)
	}
	return nil, fmt.Errorf("no row is called %q", name)
}

// tell adds the figures of a row at a site.
func (o *options) tell(name, by string, runs []sites.Outcome, limit time.Duration) {
	add := func(what, unit string, value func(sites.Outcome) float64) {
		m := figures.Measurement{Name: fmt.Sprintf("sites of three nodes, %.0f MB, by %s: %s", float64(o.size)/1e6, strings.ToUpper(by), what), Unit: unit}
		for _, run := range runs {
			o.told.Add(m, systems[name], value(run))
		}
		if name != "direct" {
			o.told.Compare(m, systems[name], systems["direct"])
		}
	}
	add("slowest client", "s", func(r sites.Outcome) float64 { return r.Took.Seconds() })
	add("slowest client beside the bound", "×", func(r sites.Outcome) float64 { return r.Took.Seconds() / limit.Seconds() })
	add("out of the line, with headers", "images", func(r sites.Outcome) float64 { return float64(r.All) / float64(o.size) })
}

// systems are what rows are called where they are compared.
var systems = map[string]string{
	"direct": "direct", "cold": "granary", "warm": "granary, the hub has it", "flap": "granary, lines go down", "cut": "granary, all lines are down",
}

func print(name, by string, runs []sites.Outcome, limit time.Duration, size int64) {
	median := func(value func(sites.Outcome) float64) float64 {
		var all []float64
		for _, o := range runs {
			all = append(all, value(o))
		}
		return figures.Median(all)
	}
	images := func(value func(sites.Outcome) int64) float64 {
		return median(func(o sites.Outcome) float64 { return float64(value(o)) / float64(size) })
	}
	took := median(func(o sites.Outcome) float64 { return o.Took.Seconds() })
	fmt.Printf("%-7s %-4s %8.2f %6.2f %8.3f %8.3f %5.3f\n", name, by, took, took/limit.Seconds(),
		images(func(o sites.Outcome) int64 { return o.Counted }), images(func(o sites.Outcome) int64 { return o.Payload }), images(func(o sites.Outcome) int64 { return o.All }))
}
