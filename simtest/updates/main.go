// Command updates measures how much of a new version of software is in the one before, by what
// it is cut into.
//
//	go run ./simtest/updates [-dir DIR]
//
// The versions are real ones: of nine packages of Debian the oldest and the newest that its
// mirrors have, as after a security update, and of two of npm. Each is a layer, as it
// would be in an image. A chunk that any layer of the older versions has is held; the others
// are fetched once, compressed with zstd in batches of 1 MiB, and so is the map that
// says which there are, with what it has inline.
//
// It takes apt-get, dpkg-deb and npm, whose lists are to be up to date (apt-get update), and
// 200 MB in DIR, where a further run finds what was downloaded. It runs for some minutes.
//
//	go run ./simtest/updates -line [-dir DIR] [-runs 3] [-subjects debian,npm,model] [-rows whole,...] [-by quic] [-figures FILE]
//
// measures what the new version of an image costs a site at the end of a line of 50 Mbit/s and 80 ms (simtest/sites), which
// has the older one. The hub has both. Images are a Debian without and with its security updates, an application
// of npm over one, and a model of 1 GiB, 5 % of which have changed in place; layers are packed by Go's gzip, as BuildKit does.
// Rows are
//
//	whole          each blob that is new is pulled (--wan=off)
//	stargz         the images are in eStargz: containerd's stargz-snapshotter mounts them from the registry itself, through the line
//	stargz-granary granary mounts these
//	lazy-pulled    granary mounts the ordinary image; the older version was pulled
//	lazy-read      the same; the older version was mounted, and all of it was read
//	bytes          the image is pulled, and its layers are made again (--wan=bytes)
//	time           the same with --wan=time, which fetches what would take longer
//
// What is mounted is measured until a program has started, if the image has one, and then until all files
// have been read, which are compared with the tars. Of what is pulled the client compares all digests. Columns are the bytes that
// came out of the line, toward the site and back, with the headers of IP, TCP and UDP (once for segments of TCP that
// the kernel hands over in one piece); those that the ledger of the site's node says came from its parent; seconds; and the bytes toward the
// site by the least that could do: the chunks that are new, cut as sites do, in zstd, in batches of 1 MiB. Values are medians.
//
// It takes root, ip, tc, nft, mmdebstrap, npm, 15 GB in DIR, where a further run finds the images, and for stargz
// what simtest/e2e/install.sh puts into $GRANARY_TOOLS. It runs for half an hour.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
)

func main() {
	dir := flag.String("dir", "", "`directory` for what is downloaded; a temporary one unless it is given")
	var b bench
	onLine := flag.Bool("line", false, "measure images over a thin line")
	b.flags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal ends it at once
	measure := run
	if *onLine {
		measure = b.run
	}
	if err := within(*dir, func(dir string) error { return measure(ctx, dir) }); err != nil {
		fmt.Fprintln(os.Stderr, "updates:", err)
		os.Exit(1)
	}
}

// within calls do with a directory, or with a temporary one.
func within(dir string, do func(dir string) error) error {
	if dir == "" {
		temp, err := os.MkdirTemp("", "updates")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temp)
		dir = temp
	}
	return do(dir)
}

func run(ctx context.Context, dir string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, set := range sets {
		pairs, err := set.get(ctx, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", set.name, err)
		}
		fmt.Fprintf(w, "%s\tchunks\tnew version, MB\theld, %%\tnew, MB\tnew as zstd, MB\tmap, MB\tfetched, MB\t\n", set.name)
		for _, s := range schemes {
			n, err := tallyOf(s, pairs)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", set.name, s.name, err)
			}
			fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.2f\t%.2f\t%.2f\t\n", s.name, n.chunks, mb(n.total), 100*float64(n.held)/float64(n.total),
				mb(n.total-n.held), mb(n.packed), mb(n.maps), mb(n.packed+n.maps))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func mb(n int) float64 { return float64(n) / 1e6 }
