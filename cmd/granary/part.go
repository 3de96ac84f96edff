package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/proxy/upstream"
)

// A part is a file that is being written, under another name than the one that it gets when it is
// complete. What it had when the last writer was interrupted is compared with what is to be in it,
// and kept as far as it is the same: bytes are read again, but not sent again.
type part struct {
	*os.File
	name string // when it is complete
	have int64  // bytes that are in the file
	pos  int64  // bytes that are right
}

// openPart opens what is there of the file name, in the file that path names. It belongs to
// this process until it is finished: for two at once the error says so.
func openPart(name, path string) (*part, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s: it is no regular file", path)
		}
		if err == nil {
			err = lock(f)
		}
		now, serr := os.Lstat(path)
		switch {
		case err != nil:
		case serr == nil && os.SameFile(info, now):
			return &part{File: f, name: name, have: now.Size()}, nil
		case serr == nil || errors.Is(serr, fs.ErrNotExist): // whoever had it has just finished it
			f.Close()
			continue
		default:
			err = serr
		}
		f.Close()
		return nil, err
	}
}

// lock takes a file or directory for this process, whatever ends it.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: another export or pull is writing to it", f.Name())
	}
	if err != nil {
		return fmt.Errorf("%s: lock: %w", f.Name(), err)
	}
	return nil
}

// begins reports whether what is there begins as it should, as far as it goes.
func (w *part) begins(with string) bool {
	there := make([]byte, min(w.have, int64(len(with))))
	_, err := w.ReadAt(there, 0)
	return err == nil && strings.HasPrefix(with, string(there))
}

// cut drops what is there from pos on.
func (w *part) cut() error {
	if w.have == w.pos {
		return nil
	}
	w.have = w.pos
	return w.Truncate(w.pos)
}

// Write writes bytes, unless they are there.
func (w *part) Write(p []byte) (int, error) {
	if there := make([]byte, min(int64(len(p)), w.have-w.pos)); len(there) == len(p) {
		if _, err := w.ReadAt(there, w.pos); err != nil {
			return 0, err
		}
		if bytes.Equal(there, p) {
			w.pos += int64(len(p))
			return len(p), nil
		}
	}
	if err := w.cut(); err != nil {
		return 0, err
	}
	n, err := w.WriteAt(p, w.pos)
	w.pos += int64(n)
	w.have = w.pos
	return n, err
}

// fetcher has take read a blob from an offset on. take is called once, or not if there is an error.
type fetcher func(offset int64, take func(io.Reader) error) error

// blob writes what desc describes. Of what is not there no more is fetched, unless the whole
// turns out not to be right.
func (w *part) blob(desc ocispec.Descriptor, from fetcher) error {
	begin := w.pos
	there := min(w.have-begin, desc.Size)
	err := w.complete(desc, there, from)
	if there > 0 && isWrong(err) {
		if err = w.back(begin); err == nil {
			err = w.complete(desc, 0, from)
		}
	}
	if isWrong(err) {
		err = errors.Join(err, w.back(begin)) // what was written before it is right
	}
	return err
}

// back drops what is there from a position on.
func (w *part) back(to int64) error {
	w.pos = to
	return w.cut()
}

// complete writes what follows the bytes of a blob that are there.
func (w *part) complete(desc ocispec.Descriptor, there int64, from fetcher) error {
	sum := desc.Digest.Algorithm().Hash()
	if _, err := io.Copy(sum, io.NewSectionReader(w, w.pos, there)); err != nil {
		return err
	}
	w.pos += there
	if there > 0 && there == desc.Size {
		return copyRest(io.Discard, bytes.NewReader(nil), desc, sum, there)
	}
	return from(there, func(r io.Reader) error { return copyRest(w, r, desc, sum, there) })
}

// finish gives the file its name, or leaves it to be continued if err is not nil, which it
// returns then. Of what was found to be wrong nothing is there any more.
func (w *part) finish(err error) error {
	defer w.Close() // which also gives it to others: not before it has its name
	if err == nil {
		err = w.cut()
	}
	if err == nil {
		err = w.Sync()
	}
	if err == nil {
		err = os.Rename(w.File.Name(), w.name)
	}
	if err == nil {
		syncDir(filepath.Dir(w.name))
		return nil
	}
	if w.have == 0 {
		err = errors.Join(err, os.Remove(w.File.Name()))
	}
	return err
}

// syncDir makes the names in a directory durable, where the file system does that.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		d.Close()
	}
}

// wrongBlobError says that other bytes have come than a descriptor describes.
type wrongBlobError struct {
	desc ocispec.Descriptor
	n    int64
	got  digest.Digest
}

func (e *wrongBlobError) Error() string {
	return fmt.Sprintf("blob %s of %d bytes: %d bytes with digest %s arrived", e.desc.Digest, e.desc.Size, e.n, e.got)
}

// isWrong reports whether an error says that other bytes have come than were asked for, be it
// the node that says so of what came to it.
func isWrong(err error) bool {
	var wrong *wrongBlobError
	var said *upstream.StatusError
	return errors.As(err, &wrong) || errors.As(err, &said) && said.Code == http.StatusBadGateway && said.OCICode() == "UNKNOWN"
}

// copyVerified copies exactly what desc describes, or fails.
func copyVerified(w io.Writer, r io.Reader, desc ocispec.Descriptor) error {
	return copyRest(w, r, desc, desc.Digest.Algorithm().Hash(), 0)
}

// copyRest copies what comes after the first n bytes of what desc describes, which sum has, or
// fails.
func copyRest(w io.Writer, r io.Reader, desc ocispec.Descriptor, sum hash.Hash, n int64) error {
	more, err := io.CopyBuffer(io.MultiWriter(w, sum), io.LimitReader(r, desc.Size-n+1), make([]byte, 1<<20))
	if err != nil {
		return err
	}
	if got := digest.NewDigest(desc.Digest.Algorithm(), sum); n+more != desc.Size || got != desc.Digest {
		return &wrongBlobError{desc, n + more, got}
	}
	return nil
}
