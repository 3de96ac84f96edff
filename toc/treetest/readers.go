package treetest

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing/iotest"

	"github.com/granary-oci/granary/toc"
)

// Failing is a layer that fails with Err from some read on.
type Failing struct {
	R     io.ReaderAt
	After int // reads that succeed
	Err   error
}

// ReadAt implements [io.ReaderAt].
func (f *Failing) ReadAt(p []byte, off int64) (int, error) {
	if f.After--; f.After < 0 {
		return 0, f.Err
	}
	return f.R.ReadAt(p, off)
}

// Counting counts what is read of a layer.
type Counting struct {
	R            io.ReaderAt
	Reads, Bytes atomic.Int64
}

// ReadAt implements [io.ReaderAt].
func (c *Counting) ReadAt(p []byte, off int64) (int, error) {
	c.Reads.Add(1)
	c.Bytes.Add(int64(len(p)))
	return c.R.ReadAt(p, off)
}

// String tells what has been read since it was last told.
func (c *Counting) String() string {
	return fmt.Sprintf("%d reads, %d bytes", c.Reads.Swap(0), c.Bytes.Swap(0))
}

// CheckReaders reports extents of a layer whose content is not read as [io.Reader] says.
func CheckReaders(l *toc.Layer) error {
	var errs []error
	for e := range l.All() {
		for _, x := range e.Extents {
			if err := checkReader(l, x); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", e.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func checkReader(l *toc.Layer, x toc.Extent) error {
	r, err := l.Inflate(x, 0)
	if err != nil {
		return err
	}
	want, err := io.ReadAll(r)
	if err != nil || int64(len(want)) != x.Size {
		return fmt.Errorf("%d bytes of %d: %v", len(want), x.Size, err)
	}
	for _, off := range []int64{0, 1, x.Size / 2, x.Size} {
		if r, err = l.Inflate(x, off); err != nil {
			return err
		}
		if err := iotest.TestReader(r, want[off:]); err != nil {
			return err
		}
	}
	return nil
}
