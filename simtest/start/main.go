// Command start
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
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
	o := new(options)
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
	list("rows", &o.rows, namesOf(rows, func(r row) string { return r.name }), "what is measured")
	list("formats", &o.formats, namesOf(formats, func(f format) string { return f.name }), "of which images")
	list("commands", &o.commands, namesOf(commandsOf, func(c command) string { return c.name }), "with which commands")
	flag.IntVar(&o.runs, "runs", 5, "how often each is measured; what is printed is the median")
	flag.IntVar(&o.rate, "rate", 200, "Mbit/s of each node's link, each way")
	flag.DurationVar(&o.delay, "delay", 10*time.Millisecond, "by how much a round trip to the registry takes longer")
	flag.StringVar(&o.work, "work", defaultWork(), "where images and logs are kept")
	flag.StringVar(&o.granary, "granary", "", "the program (default: built from the source)")
	flag.StringVar(&o.logLevel, "log-level", "info", "of the nodes")
	flag.BoolVar(&o.verbose, "v", false, "tell of each run")
	flag.BoolVar(&o.trace, "trace", false, "tell of each request to the registry, as it gets there")
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
	if tools() != "" {
		return filepath.Join(tools(), "start")
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
		if _, err := tool(name); err != nil {
			return err
		}
	}
	return nil
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
	if !granaryKnows(l.granary, "mount", "--kernel-mounts") {
		fmt.Println("the row kernel is left out: this granary has no --kernel-mounts")
		o.rows = slices.DeleteFunc(o.rows, func(name string) bool { return name == "kernel" })
	}
	return l.measure(ctx, o)
}

// measure runs all rows in turn, and again.
func (l *lab) measure(ctx context.Context, o *options) error {
	var all results
	defer func() { all.print(os.Stdout) }()
	for i := range o.runs {
		for _, c := range commandsOf {
			for _, r := range rows {
				for _, format := range o.formats {
					if !slices.Contains(o.commands, c.name) || !slices.Contains(o.rows, r.name) || !r.suits(format) {
						continue
					}
					l.label = fmt.Sprintf("%d-%s-%s-%.5s", i+1, r.name, format, c.name)
					got, err := r.run(ctx, l, l.images[format], c)
					if err != nil {
						return fmt.Errorf("%s of %s with %s: %w", r.name, format, c.name, errors.Join(ctx.Err(), err))
					}
					for more, one := range got {
						name := strings.TrimSpace(r.name + " " + more)
						all.add(name, format, c.name, one)
						if o.verbose {
							fmt.Printf("%s, %s, %s: %v\n", name, format, c.name, one)
						}
					}
				}
			}
		}
	}
	return nil
}

// granaryKnows tells whether a command has a flag.
func granaryKnows(granary, command, flag string) bool {
	out, _ := exec.Command(granary, command, "--help").CombinedOutput()
	return strings.Contains(string(out), flag)
}
