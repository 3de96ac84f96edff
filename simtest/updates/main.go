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
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "updates:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) error {
	if dir == "" {
		temp, err := os.MkdirTemp("", "updates")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temp)
		dir = temp
	}
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
