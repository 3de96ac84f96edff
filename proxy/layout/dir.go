package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/flight"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	filesAtOnce = 32               // operations on files, of one directory
	fileFor     = 30 * time.Second // that one may take, as long as a registry may take to answer
	settled     = 2 * time.Second  // after which a change of a file has another time than the last one
)

// Dir is a layout in a directory or a tar file: the one that has the path when something is
// read. No symlink leads out of a directory, and what is no regular file is not read. Files on
// a server that does not answer take no more than the callers' time.
type Dir struct {
	path   string
	origin string   // that is to blame for what is wrong
	tar    *archive // nil for a directory
	report func(error)
	places chan struct{} // one for each operation under way
	doubts doubts
	checks flight.Group // of blobs that are in doubt
}

var _ Files = (*Dir)(nil)

// NewDir returns the layout at a path, which need not be there yet. report, which may be
// nil, is told of blobs that were found to be wrong.
func NewDir(path string, report func(error)) *Dir {
	if report == nil {
		report = func(error) {}
	}
	return &Dir{path: path, origin: Origin, report: report, places: make(chan struct{}, filesAtOnce)}
}

// NewArchive returns the layout in the tar file at a path, or the one that its images make if
// that is of `docker save`, otherwise as [NewDir] does.
func NewArchive(path string, report func(error)) *Dir {
	d := NewDir(path, report)
	d.tar = &archive{path: path}
	return d
}

// At returns the layout at a place in a file system: oci:DIR, or oci-archive:FILE and
// docker-archive:FILE, which mean the same, for a file says itself which of both it is. ok is
// false for what is no such place. report is that of [NewDir].
func At(place string, report func(error)) (d *Dir, ok bool) {
	kind, path, _ := strings.Cut(place, ":")
	switch {
	case path == "":
	case kind == "oci":
		return NewDir(path, report), true
	case kind == "oci-archive" || kind == "docker-archive":
		return NewArchive(path, report), true
	}
	return nil, false
}

// Path implements [Files].
func (d *Dir) Path(name string) string {
	if d.tar != nil {
		name = d.tar.entry(name)
	}
	return filepath.Join(d.path, name)
}

// await does something with files, which may take for ever on NFS: whoever waits for it
// leaves when ctx ends, or after [fileFor]. What fails because a file was replaced on the
// server is done once more.
func await[T any](ctx context.Context, d *Dir, name string, do func() (T, error)) (v T, err error) {
	subject := "layout " + d.Path(name)
	ctx, cancel := context.WithTimeoutCause(ctx, fileFor, fmt.Errorf("no answer for %v: %w", fileFor, os.ErrDeadlineExceeded))
	defer cancel()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	select {
	case d.places <- struct{}{}:
		go func() {
			defer func() { <-d.places }()
			v, err := do()
			if errors.Is(err, syscall.ESTALE) {
				v, err = do() // there is another by the same name
			}
			done <- result{v, err}
		}()
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return v, fmt.Errorf("%s: %w", subject, ctx.Err())
		}
		return v, &upstream.NoAnswerError{Subject: subject, Err: context.Cause(ctx)}
	}
}

// open opens a file of the layout. It is for use within await.
func (d *Dir) open(name string) (opened, error) {
	if d.tar != nil {
		return d.tar.open(name)
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return opened{}, d.explain("", err)
	}
	defer root.Close()
	f, info, err := openRegular(func(flag int) (*os.File, error) { return root.OpenFile(name, flag, 0) })
	if errors.Is(err, fs.ErrNotExist) {
		return opened{}, d.missing(root, name)
	}
	if err != nil {
		return opened{}, d.explain(name, err)
	}
	return opened{File: f, span: span{size: info.Size()}, stamp: stamp(info), version: version(info)}, nil
}

// opened is a file of a layout, within a file of the file system.
type opened struct {
	*os.File
	span
	stamp   string // of the file of the file system
	version string // the same, or ""
}

// at reads a part of the file.
func (f opened) at(p []byte, off int64) (int, error) { return f.from(f.File).ReadAt(p, off) }

// openRegular opens what is to be a regular file.
func openRegular(open func(flag int) (*os.File, error)) (*os.File, fs.FileInfo, error) {
	f, err := open(os.O_RDONLY | syscall.O_NONBLOCK) // a pipe would wait for its writer
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("it is no regular file but %v", info.Mode().Type())
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// missing tells a layout that lacks a file from a directory where nothing is mounted.
func (d *Dir) missing(root *os.Root, name string) error {
	all, err := root.Open(".")
	if err == nil {
		defer all.Close()
		_, err = all.Readdirnames(1)
	}
	if errors.Is(err, io.EOF) {
		return &upstream.NoAnswerError{Subject: "layout " + d.path, Err: errors.New("the directory is empty")}
	}
	if err != nil {
		return d.explain("", err)
	}
	return fmt.Errorf("layout: %s: %w", d.Path(name), chunk.ErrNotFound)
}

// explain names the file that an error is about, and says what keeps a whole layout from
// being read.
func (d *Dir) explain(name string, err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // the path is a part of ours
	}
	switch {
	case name == "" && errors.Is(err, syscall.ENOTDIR):
		return &FormatError{d.path, errors.New("it is no directory")}
	case name == "" && errors.Is(err, fs.ErrNotExist), away(err):
		return &upstream.NoAnswerError{Subject: "layout " + d.Path(name), Err: err}
	}
	return fmt.Errorf("layout: %s: %w", d.Path(name), err)
}

// away reports whether an error is that of a file system which does not answer.
func away(err error) bool {
	for _, errno := range []syscall.Errno{
		syscall.ESTALE, syscall.EIO, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH,
		syscall.ENOTCONN, syscall.ECONNREFUSED, syscall.ECONNABORTED, syscall.ECONNRESET, syscall.ENODEV, syscall.ENXIO,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// stamp is what a file has another of when it has changed: it is a different one, or its
// size or times are.
func stamp(info fs.FileInfo) string {
	s := fmt.Sprint(info.Size(), info.ModTime().UnixNano())
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s += fmt.Sprint(" ", sys.Dev, sys.Ino, sys.Ctim)
	}
	return s
}

// version is the stamp of a file, or "" as long as the next change could leave it as it
// is, for times are coarse.
func version(info fs.FileInfo) string {
	if time.Since(info.ModTime()) < settled {
		return ""
	}
	return stamp(info)
}

// File implements [Files].
func (d *Dir) File(ctx context.Context, name string, limit int64, known string) ([]byte, string, error) {
	type file struct {
		bytes   []byte
		version string
	}
	f, err := opening(ctx, d, name, func() (file, error) {
		f, err := d.open(name)
		if err != nil {
			return file{}, err
		}
		defer f.Close()
		switch {
		case f.version != "" && f.version == known:
			return file{nil, f.version}, nil
		case f.size > limit:
			return file{}, tooLarge(d.Path(name), limit)
		}
		p, err := io.ReadAll(f.from(f.File))
		if err != nil {
			return file{}, d.explain(name, err)
		}
		return file{p, f.version}, nil
	})
	return f.bytes, f.version, err
}

func tooLarge(path string, limit int64) error {
	return &FormatError{path, fmt.Errorf("it has more than %d bytes", limit)}
}

// openBlob opens a blob's file, unless that is known to be wrong, for the caller to close.
func (d *Dir) openBlob(ctx context.Context, blob digest.Digest) (opened, error) {
	return opening(ctx, d, blobPath(blob), func() (opened, error) {
		f, err := d.open(blobPath(blob))
		if err != nil {
			return opened{}, err
		}
		if d.doubts.wrong(blob, f.stamp) {
			f.Close()
			return opened{}, d.wrong(blob, f.size)
		}
		return f, nil
	})
}

// read returns size bytes of a file.
func (d *Dir) read(ctx context.Context, blob digest.Digest, f opened, off, size int64) ([]byte, error) {
	name := blobPath(blob)
	at := f
	return await(ctx, d, name, func() ([]byte, error) {
		p := make([]byte, size) // nobody else's: whoever waits may leave before it is filled
		n, err := at.at(p, off)
		switch {
		case errors.Is(err, syscall.ESTALE) && at.File == f.File: // await calls again
			again, oerr := d.open(name)
			if oerr != nil {
				return nil, oerr
			}
			at = again // and closed when nothing refers to it
			return nil, err
		case int64(n) == size:
			return p, nil
		case err == io.EOF:
			return nil, d.corrupt(blob, f.size, "the file ends at %d", off+int64(n))
		}
		return nil, d.explain(name, err)
	})
}

// source names a blob's file in errors.
func (d *Dir) source(blob digest.Digest) string { return d.origin + " " + d.Path(blobPath(blob)) }

func (d *Dir) corrupt(blob digest.Digest, size int64, format string, args ...any) error {
	return &chunk.CorruptError{
		Source: d.source(blob),
		Ref:    chunk.Ref{Blob: blob, Total: size, Size: size},
		Reason: fmt.Sprintf(format, args...),
	}
}

// Stat implements [Files].
func (d *Dir) Stat(ctx context.Context, blob digest.Digest) (int64, error) {
	f, err := d.openBlob(ctx, blob)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if f.size > chunk.MaxBlobSize {
		return 0, fmt.Errorf("layout: %s: %d bytes are more than a blob may have", d.Path(blobPath(blob)), f.size)
	}
	return f.size, nil
}

// Range implements [Files], for one closed range.
func (d *Dir) Range(ctx context.Context, blob digest.Digest, asked string) (*http.Response, error) {
	f, err := d.openBlob(ctx, blob)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var first, last int64
	if n, err := fmt.Sscanf(asked, "bytes=%d-%d", &first, &last); n != 2 || err != nil || first < 0 || last < first || last-first >= chunk.StripeSize {
		return nil, fmt.Errorf("layout: %s: range %q is not one of up to %d bytes", d.Path(blobPath(blob)), asked, chunk.StripeSize)
	}
	if last >= f.size {
		return nil, d.corrupt(blob, f.size, "the file has %d bytes, and %s was asked for", f.size, asked)
	}
	p, err := d.read(ctx, blob, f, first, last+1-first)
	if err != nil {
		return nil, err
	}
	h := http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", first, last, f.size)}}
	return answer(http.StatusPartialContent, h, bytes.NewReader(p)), nil
}

// Blob implements [Files].
func (d *Dir) Blob() chunk.Source { return dirSource{d} }

type dirSource struct{ dir *Dir }

// Get implements [chunk.Source].
func (s dirSource) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error { p = q; return nil })
	return p, err
}

// GetRun implements [chunk.Runner]. The file is opened once for a run.
func (s dirSource) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if len(refs) == 0 {
		return nil
	}
	d, blob, total := s.dir, refs[0].Blob, refs[0].Total
	if err := checkDigest(blob); err != nil {
		return err
	}
	f, err := d.openBlob(ctx, blob)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.size != total {
		return d.corrupt(blob, total, "the file has %d bytes", f.size)
	}
	if err := d.dispel(ctx, blob); err != nil {
		return err
	}
	for _, ref := range refs {
		p, err := d.read(ctx, blob, f, ref.Offset, ref.Size)
		if err == nil {
			err = ref.Check(d.source(blob), p)
		}
		if err != nil {
			return err
		}
		if err := yield(ref, p); err != nil {
			return err
		}
	}
	return nil
}
