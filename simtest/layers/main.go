// Command layers proves what tables of contents are for: to list an image, and to
// read a file of it, moves a small part of it.
//
//	go run ./simtest/layers [-runs 5] [-figures FILE]
//
// It makes one image of three layers, a minimal Debian by mmdebstrap, changes to it,
// and files of all kinds, in every format, by these writers:
//
//	tar, gzip, zstd   the layers as they are, through compress/gzip of the standard
//	                  library, and zstd of klauspost/compress
//	gzip-members      the same in members of 1 MiB, by gzip of klauspost/compress
//	estargz           github.com/containerd/stargz-snapshotter/estargz, with files
//	                  to be read first
//	zstd-stargz       zstd:chunked as stargz-snapshotter has it: the same module
//	zstd-storage      zstd:chunked as podman, buildah and skopeo have it:
//	                  github.com/containers/storage, in a program of its own
//	erofs             mkfs.erofs of Debian, without compression
//	squashfs-*        mksquashfs of Debian
//
// Those of tars leave sparse files sparse, as GNU tar writes them in both of its
// ways, where the writer can read such; umoci knows only one of them, and unpacks
// the image of plain tars that have the same content in full. Layers of file systems
// are made of what GNU tar unpacks of each tar, with whiteouts as overlayfs knows
// them.
//
// The registry is Debian's docker-registry, and what leaves it is counted before it.
// The tests compare what nodes say of the images with what umoci unpacks, and bring
// hostile layers. All takes root, and what simtest/e2e/install.sh installs.
// $GRANARY_LAYERS may name a folder where written layers are kept for the next run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/granary-oci/granary/simtest/figures"
)

func main() {
	runs := flag.Int("runs", 5, "how often each is measured; what is printed is the median")
	entries := flag.Int("entries", 1_000_000, "how many `entries` the table has whose memory is measured")
	keep := flag.String("make", "", "write the layers to a `folder`, to be named by $GRANARY_LAYERS, and no more")
	small := flag.Bool("small", false, "with -make: write the layers that the tests use, which are smaller")
	told := figures.Flag(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := func() error { return report(ctx, max(1, *runs), *entries, told) }
	if *keep != "" {
		run = func() error { return makeLayers(ctx, *keep, *small) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "layers:", err)
		os.Exit(1)
	}
}

// report makes the images, and prints all tables.
func report(ctx context.Context, runs, entries int, told *figures.Set) (err error) {
	l, err := newLab(ctx, false)
	defer func() { err = joined(err, l.close()) }()
	if err != nil {
		return err
	}
	defer func() { err = joined(err, told.Write()) }()
	if err := l.reportFormats(ctx, runs, told); err != nil {
		return err
	}
	if err := l.reportGzip(runs, told); err != nil {
		return err
	}
	return reportMemory(entries)
}

func joined(errs ...error) error { return errors.Join(errs...) }
