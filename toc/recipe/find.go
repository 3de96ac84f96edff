package recipe

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/granary-oci/granary/toc"
)

const (
	// sampleSize is how much of the tar encoders are tried on: more than a block of pgzip, which
	// only its end tells from a stream.
	sampleSize = blockSize + 256<<10
	// maxTried is how many encoders, of those that make the sample, are followed from there on, until they
	// differ. What does not compress is the same at most levels.
	maxTried = 2
	// maxSteps is how many members the sample may begin: eStargz has one for each file.
	maxSteps = 1 << 12
)

// Find returns the recipe of a layer in gzip of size bytes. It inflates the layer once, compresses what comes
// out as the encoders do that its first header may be of, and compares that with the layer, which it
// reads in order, at two or three places. Most encoders are out with their first block. In memory are the first
// 1.3 MiB of the tar, and two encoders.
//
// The error wraps [ErrNone], with the reason, when the layer is in order but cannot be made again here; [toc.ErrFormat]
// when it does not begin as gzip does; io.ErrUnexpectedEOF, [toc.ErrMalformed] or [toc.ErrLimit] when it is not in order; else
// it is one of ctx or blob.
func Find(ctx context.Context, blob io.ReaderAt, size int64) (*Recipe, error) {
	return FindWithin(ctx, blob, size, maxTar)
}

// FindWithin is Find of a layer whose tar has no more than most bytes. Of another one the error wraps
// [toc.ErrLimit], as it does with Find when it has more than 1 TiB.
func FindWithin(ctx context.Context, blob io.ReaderAt, size, most int64) (*Recipe, error) {
	s := &search{unpacker: newUnpacker(ctx, blob, size), most: min(most, maxTar), tar: sha256.New()}
	if err := s.sample(); err != nil {
		return nil, err
	}
	if err := s.rest(); err != nil {
		return nil, err
	}
	r := &Recipe{Size: size, DiffID: toc.Digest(s.tar.Sum(nil)), Encoder: s.tries[0].encoder, Members: s.members}
	var err error
	if r.Tail, r.Blob, err = s.tail(); err != nil {
		return nil, err
	}
	if _, err := r.Encode(); err != nil {
		return nil, none("it has %d members", len(r.Members))
	}
	if err := r.check(); err != nil {
		return nil, err // nothing that an encoder makes is so
	}
	return r, nil
}

// search is a layer that is being inflated and made again.
type search struct {
	*unpacker
	most    int64 // bytes that the tar may have
	tar     hash.Hash
	out     int64 // bytes of the tar
	members []Member
	headers int    // bytes of headers that differ from the one before
	tries   []*try // that are still like the layer
}

// step returns the next step, and takes note of it.
func (s *search) step() (step, error) {
	next, err := s.next()
	if err != nil {
		return next, err
	}
	if next.header != nil {
		if err := s.begin(next.header); err != nil {
			return next, err
		}
	}
	m := &s.members[len(s.members)-1]
	m.Size, m.Flushed = m.Size+int64(len(next.data)), next.flushed
	s.tar.Write(next.data)
	if s.out += int64(len(next.data)); s.out > s.most {
		return next, fmt.Errorf("recipe: blob: %w: a tar of more than %d bytes", toc.ErrLimit, s.most)
	}
	return next, nil
}

// begin takes note of a member's beginning. Headers that are alike are kept once.
func (s *search) begin(header []byte) error {
	if n := len(s.members); n > 0 && bytes.Equal(header, s.members[n-1].Header) {
		header = s.members[n-1].Header
	} else {
		s.headers += len(header)
	}
	if len(s.members) == maxMembers || s.headers > MaxSize {
		return none("it has more than %d members, with headers of %d bytes", len(s.members), s.headers)
	}
	s.members = append(s.members, Member{Header: header})
	return nil
}

// sample tries the encoders on the layer's beginning, one after the other.
func (s *search) sample() error {
	var steps []step
	for s.out < sampleSize && len(steps) < maxSteps {
		next, err := s.step()
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		next.data = bytes.Clone(next.data)
		steps = append(steps, next)
	}
	header := s.members[0].Header
	for _, e := range candidates(header) {
		if err := s.try(e, steps); err != nil {
			return err
		}
		if len(s.tries) == maxTried {
			return nil
		}
	}
	if len(s.tries) == 0 {
		return none("no known encoder makes its beginning; %s", told(header))
	}
	return nil
}

// try follows an encoder through the sample, and keeps it if it makes that.
func (s *search) try(e Encoder, steps []step) error {
	if err := s.src.ctx.Err(); err != nil {
		return fmt.Errorf("recipe: blob: %w", err)
	}
	t, err := newTry(e, s.blob, s.size)
	if err != nil {
		return err
	}
	for _, next := range steps {
		if err := t.do(next); errors.Is(err, errDiffers) {
			return nil
		} else if err != nil {
			return err
		}
	}
	s.tries = append(s.tries, t)
	return nil
}

// rest follows what is left of the tries through the rest of the layer.
func (s *search) rest() error {
	for {
		next, err := s.step()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		like, far := s.tries[:0], (*try)(nil)
		for _, t := range s.tries {
			err := t.do(next)
			switch {
			case err == nil:
				like = append(like, t)
			case !errors.Is(err, errDiffers):
				return err
			case far == nil || far.pos < t.pos:
				far = t
			}
		}
		if s.tries = like; len(like) == 0 {
			return none("what %v makes differs from byte %d of %d on", far.encoder, far.pos, s.size)
		}
	}
}

// told says what a header tells of who has made it.
func told(header []byte) string {
	switch os := header[9]; os {
	case osUnknown:
		return "its header is as Go's libraries, libdeflate and Java make it"
	case osUnix:
		return "its header is as GNU gzip, pigz and zlib make it"
	default:
		return fmt.Sprintf("its header says operating system %d", os)
	}
}

const (
	osUnknown = 255 // as all of Go's encoders say, unless they are told otherwise
	osUnix    = 3
	slowest   = 2 // of the extra flags (RFC 1952 section 2.3.1)
	fastest   = 4
)

// zeroTime is Go's zero time in seconds, cut to 32 bits, as klauspost's encoders write it.
var zeroTime = []byte{0x00, 0x09, 0x6e, 0x88}

// candidates returns the encoders that a member with such a header may be of, the likeliest first. All of
// them tell by the extra flags whether their level is 1 or 9. Their time is the zero time unless
// somebody sets it, and who does may use either.
func candidates(header []byte) (all []Encoder) {
	add := func(levels []int, families ...Family) {
		for _, level := range levels {
			for _, f := range families {
				all = append(all, Encoder{f, level})
			}
		}
	}
	standard, fast := levels(header[8], 6), levels(header[8], 5)
	if bytes.Equal(header[4:8], zeroTime) {
		add(fast, Pgzip117, Pgzip, Klauspost117, Klauspost)
		return all
	}
	add(standard, Go)
	add(fast[:1], Pgzip117, Pgzip, Klauspost117, Klauspost)
	return all
}

// levels returns the levels that a member's extra flags may be of, the default first.
func levels(extraFlags byte, byDefault int) []int {
	switch extraFlags {
	case slowest:
		return []int{flate.BestCompression}
	case fastest:
		return []int{flate.BestSpeed}
	}
	all := []int{byDefault}
	for _, level := range []int{6, 5, 7, 4, 3, 8, 2, flate.NoCompression, flate.HuffmanOnly} {
		if level != byDefault {
			all = append(all, level)
		}
	}
	return all
}

var errDiffers = errors.New("it differs")

// try is an encoder that makes a layer again, as long as it is like the layer.
type try struct {
	encoder Encoder
	packer  *packer
	blob    *bufio.Reader
	pos     int64 // up to which it is alike
	buf     []byte
}

func newTry(e Encoder, blob io.ReaderAt, size int64) (t *try, err error) {
	t = &try{encoder: e, blob: bufio.NewReaderSize(io.NewSectionReader(blob, 0, size), piece), buf: make([]byte, piece)}
	t.packer, err = e.packer(t)
	return t, err
}

func (t *try) do(next step) error {
	switch {
	case next.header != nil:
		return t.packer.begin(next.header)
	case next.end:
		return t.packer.end(next.flushed)
	}
	_, err := t.packer.Write(next.data)
	return err
}

// Write compares what was made with what is there.
func (t *try) Write(p []byte) (n int, err error) {
	for n < len(p) {
		want := t.buf[:min(len(t.buf), len(p)-n)]
		got, err := io.ReadFull(t.blob, want)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return n, fmt.Errorf("recipe: blob: at byte %d: %w", t.pos, err)
		}
		alike := common(want[:got], p[n:])
		t.pos, n = t.pos+int64(alike), n+alike
		if alike < len(want) {
			return n, errDiffers
		}
	}
	return n, nil
}

// common returns how many bytes a and b begin with alike.
func common(a, b []byte) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
