package recipe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"

	"github.com/granary-oci/granary/toc"
)

// step is a piece of a layer as it is inflated: the beginning of a member, or some of
// what is in it, or its end.
type step struct {
	header []byte // of the member that begins; nil for none
	data   []byte // valid until the next step
	end    bool
	// flushed is whether the member that ends was flushed before it was closed.
	flushed bool
}

// source reads a blob forwards. It tells errors of the reader from those of what is read.
type source struct {
	ctx  context.Context
	r    io.Reader
	n    int64     // bytes that were read
	hash hash.Hash // of them
	err  error     // that reading ended with
}

func (s *source) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.hash.Write(p[:n])
	s.err = err
	return n, err
}

// unpacker inflates a layer step by step.
type unpacker struct {
	blob   io.ReaderAt
	size   int64
	src    source
	in     *bufio.Reader
	z      *gzip.Reader
	buf    []byte
	inside bool  // a member
	end    int64 // of the last member
}

func newUnpacker(ctx context.Context, blob io.ReaderAt, size int64) *unpacker {
	u := &unpacker{blob: blob, size: size, z: new(gzip.Reader), buf: make([]byte, piece)}
	u.src = source{ctx: ctx, r: io.NewSectionReader(blob, 0, size), hash: sha256.New()}
	u.in = bufio.NewReaderSize(&u.src, piece)
	return u
}

// pos returns how much of the blob is consumed.
func (u *unpacker) pos() int64 { return u.src.n - int64(u.in.Buffered()) }

// next returns the next step, or io.EOF behind the last member.
func (u *unpacker) next() (step, error) {
	if !u.inside {
		return u.begin()
	}
	n, err := u.z.Read(u.buf)
	switch {
	case n > 0:
		return step{data: u.buf[:n]}, nil // an error comes again
	case err == io.EOF:
		return u.close()
	}
	return step{}, u.fail(err)
}

func (u *unpacker) begin() (step, error) {
	err := u.z.Reset(u.in)
	switch {
	case err != nil && u.src.err != nil && u.src.err != io.EOF:
		return step{}, u.fail(err)
	case err != nil && u.end > 0:
		return step{}, io.EOF // whatever it is that follows
	case err != nil:
		return step{}, fmt.Errorf("recipe: blob: %w", toc.ErrFormat)
	}
	u.z.Multistream(false)
	u.inside = true
	header := make([]byte, u.pos()-u.end)
	if len(header) > maxHeader {
		return step{}, none("a member's header has %d bytes", len(header))
	}
	return step{header: header}, u.readAt(header, u.end)
}

func (u *unpacker) close() (step, error) {
	u.inside, u.end = false, u.pos()
	last := make([]byte, len(storedEnd))
	if at := u.end - trailerSize - int64(len(last)); at > 0 {
		if err := u.readAt(last, at); err != nil {
			return step{}, err
		}
	}
	return step{end: true, flushed: bytes.Equal(last, storedEnd) || bytes.HasSuffix(last, fixedEnd)}, nil
}

// readAt reads what was read before.
func (u *unpacker) readAt(p []byte, at int64) error {
	if _, err := u.blob.ReadAt(p, at); err != nil && err != io.EOF {
		return fmt.Errorf("recipe: blob: at byte %d: %w", at, err)
	}
	return nil
}

// fail returns the error to report when reading the blob led to err.
func (u *unpacker) fail(err error) error {
	switch {
	case u.src.err != nil && u.src.err != io.EOF:
		err = u.src.err
	case !errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: %w", toc.ErrMalformed, err)
	}
	return fmt.Errorf("recipe: blob: at byte %d: %w", u.pos(), err)
}

// tail returns what follows the last member, and the digest of all of the blob.
func (u *unpacker) tail() ([]byte, toc.Digest, error) {
	if u.size-u.end > maxTail {
		return nil, toc.Digest{}, none("%d bytes follow its last member, which are none", u.size-u.end)
	}
	if _, err := io.Copy(io.Discard, u.in); err != nil {
		return nil, toc.Digest{}, u.fail(err)
	}
	if u.src.n < u.size {
		return nil, toc.Digest{}, u.fail(io.ErrUnexpectedEOF)
	}
	tail := make([]byte, u.size-u.end)
	return tail, toc.Digest(u.src.hash.Sum(nil)), u.readAt(tail, u.end)
}
