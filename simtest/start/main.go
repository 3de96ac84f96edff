// Command start measures what a mount is for: how long it takes until the first command of
// an image has printed, and how much has travelled until then.
//
//	go run ./simtest/start [-runs 5] [-rows mount,profile] [-formats estargz,gzip] [-figures FILE]
//
// The image is a Debian with Python and NumPy, of four layers, by mmdebstrap: the same
// bytes each time, but for what Debian changes. It is made once, in each format that there
// is a writer for, and kept. The registry is the CNCF's, at the end of a link of 200 Mbit/s
// each way and 10 ms of delay: packets cross it through a pair of network devices that this
// program serves (wire.go), so that the kernel's own TCP pays for each connection and its
// slow start. What the link does to programs is measured first, and told.
//
// A row begins with nothing of the image on the machine, and a node that runs. The clock
// runs from the start of "granary mount" until the command has ended, whose output is
// checked; it runs by chroot, without what a container takes beside. Bytes are those of
// TCP that came from the registry, CPU time that of the node and the mount. With a delay
// of 200 ms, say, times tell how many round trips wait for each other, on a busy machine
// too.
//
//	pull         containerd pulls and unpacks the image
//	snapshotter  containerd's snapshotter for eStargz mounts it, with its own settings
//	mount        a node mounts it
//	kernel       the same, with the kernel's own drivers for layers that are file systems
//	index        the node has the index of all layers, made beforehand, and nothing else
//	cluster      one of two members of a cluster mounts it, and then the other; they are
//	             near each other, each behind a link of its own
//	profile      the node has a profile of an earlier run of the command, and the indexes
//	             of layers, and nothing else
//	again        the node has all that the command reads
//
// The format estargz-first is eStargz with the files put first that the commands read.
// Rows take turns, so that a busy machine is one for all of them. It takes root, and what
// simtest/e2e/install.sh puts into $GRANARY_TOOLS; -rows and -formats take less.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
)

// options are the command line.
type options struct {
	subject  subject
	work     string
	granary  string
	logLevel string
	rate     int
	delay    time.Duration
	runs     int
	rows     []string
	formats  []string
	commands []string
	verbose  bool
	trace    bool
	told     *figures.Set
}

func main() {
	o := parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
		stop()
		os.Exit(1)
	}
}

func parse() *options {
	o := &options{subject: python}
	list := func(name string, to *[]string, all []string, usage string) {
		*to = all
		flag.Func(name, usage+": "+strings.Join(all, ", ")+" (default all)", func(s string) error {
			*to = strings.Split(s, ",")
			for _, one := range *to {
				if !slices.Contains(all, one) {
					return fmt.Errorf("there is no %q", one)
				}
			}
			return nil
		})
	}
	list("rows", &o.rows, namesOf(rows, func(r row) string { return r.name }), "what is measured, separated by commas")
	list("formats", &o.formats, namesOf(formats, func(f format) string { return f.name }), "of which images")
	flag.Func("commands", "with which commands: print(1), numpy (default all)", func(s string) error {
		o.commands = strings.Split(s, ",")
		return nil
	})
	flag.BoolFunc("small", "try the program with a smaller image, of one layer, and the commands sh and awk", func(string) error {
		o.subject = small
		return nil
	})
	flag.IntVar(&o.runs, "runs", 5, "how often each is measured; what is printed is the median")
	flag.IntVar(&o.rate, "rate", 200, "Mbit/s of each node's link, each way")
	flag.DurationVar(&o.delay, "delay", 10*time.Millisecond, "by how much a round trip to the registry takes longer")
	flag.StringVar(&o.work, "work", defaultWork(), "where images and logs are kept")
	flag.StringVar(&o.granary, "granary", "", "the program (default: built from the source)")
	flag.StringVar(&o.logLevel, "log-level", "info", "of the nodes")
	flag.BoolVar(&o.verbose, "v", false, "tell of each run")
	flag.BoolVar(&o.trace, "trace", false, "tell of each request to the registry, as it gets there")
	o.told = figures.Flag(flag.CommandLine)
	flag.Parse()
	return o
}

// tracer returns what tells of requests, or nil.
func (o *options) tracer() *trace {
	if !o.trace {
		return nil
	}
	return &trace{w: os.Stdout, begin: time.Now()}
}

func namesOf[T any](all []T, name func(T) string) (names []string) {
	for _, one := range all {
		names = append(names, name(one))
	}
	return names
}

func defaultWork() string {
	if netns.Tools() != "" {
		return filepath.Join(netns.Tools(), "start")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "granary-start")
}

// check reports what is not there.
func check() error {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to make networks and to mount")
	}
	for _, name := range []string{"ip", "tc", "nsenter", "chroot", "tar", "mmdebstrap", "mkfs.erofs", "mksquashfs", "chunked", "registry", "containerd", "ctr"} {
		if _, err := netns.Tool(name); err != nil {
			return err
		}
	}
	_, err := os.Stat("/dev/net/tun")
	return err
}

func run(ctx context.Context, o *options) error {
	if err := errors.Join(check(), os.MkdirAll(o.work, 0o755)); err != nil {
		return err
	}
	l, err := newLab(ctx, o)
	defer l.close()
	if err != nil {
		return err
	}
	if err := l.makeImages(ctx, o); err != nil {
		return err
	}
	found, err := l.net.measure(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d CPUs; the link is set to %d Mbit/s and %v: %v\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), o.rate, o.delay, found)
	for _, name := range o.formats {
		fmt.Printf("%-14s %4.0f MB\n", name, float64(l.images[name].Size)/1e6)
	}
	return l.measure(ctx, o)
}

// trial is a row, for one format and command.
type trial struct {
	row     row
	format  string
	command command
}

// trials are those that are asked for, and can be had.
func (l *lab) trials(o *options) (all []trial) {
	var left []row
	for _, r := range rows {
		if !slices.Contains(o.rows, r.name) {
			continue
		}
		if r.missing != nil {
			if why := r.missing(l); why != "" {
				fmt.Printf("the row %s is left out: %s\n", r.name, why)
				continue
			}
		}
		left = append(left, r)
	}
	for _, c := range o.subject.commands {
		for _, r := range left {
			for _, f := range o.formats {
				if r.suits(f) && (o.commands == nil || slices.Contains(o.commands, c.name)) {
					all = append(all, trial{r, f, c})
				}
			}
		}
	}
	return all
}

// measure tries all in turn, and again.
func (l *lab) measure(ctx context.Context, o *options) (err error) {
	var all results
	defer func() {
		all.print(os.Stdout)
		all.tell(o.told)
		err = errors.Join(err, o.told.Write())
	}()
	trials := l.trials(o)
	for i := range o.runs {
		for _, t := range trials {
			l.label = fmt.Sprintf("%d-%s-%s-%.5s", i+1, t.row.name, t.format, t.command.name)
			got, err := t.row.run(ctx, l, l.images[t.format], t.command)
			if err != nil {
				return fmt.Errorf("%s of %s with %s: %w", t.row.name, t.format, t.command.name, errors.Join(ctx.Err(), err))
			}
			for _, m := range got {
				name := strings.TrimSpace(t.row.name + " " + m.part)
				all.add(name, t.format, t.command.name, m.outcome)
				if o.verbose {
					fmt.Printf("%s, %s, %s: %v\n", name, t.format, t.command.name, m.outcome)
				}
			}
		}
	}
	return nil
}
