package upstream

import (
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// run is the progress of one call of GetRun.
type run struct {
	blob  digest.Digest
	total int64
	refs  []chunk.Ref // what has not been given yet, adjacent and in order
	yield func(chunk.Ref, []byte) error

	buf    []byte // for the first of refs, nil until it is needed
	filled int    // how much of buf has arrived

	reached  int64 // the end of what has ever arrived for the run, skipped bytes included
	answered bool  // a request has been answered as it should
	renewed  bool  // a refusal has been retried
	stopped  error // what yield returned
}

func newRun(refs []chunk.Ref, yield func(chunk.Ref, []byte) error) (*run, error) {
	r := &run{refs: refs, yield: yield}
	if len(refs) > 0 {
		r.blob, r.total = refs[0].Blob, refs[0].Total
	}
	for i, ref := range refs {
		if _, err := parseDigest(ref.Blob); err != nil {
			return nil, err
		}
		if err := ref.Validate(); err != nil {
			return nil, err
		}
		if i > 0 && (ref.Blob != r.blob || ref.Total != r.total || ref.Offset != refs[i-1].Offset+refs[i-1].Size) {
			return nil, fmt.Errorf("chunk %s: not adjacent to %s", ref, refs[i-1])
		}
	}
	return r, nil
}

func (r *run) done() bool { return len(r.refs) == 0 }

// single reports whether the run is for a blob of one chunk.
func (r *run) single() bool { return r.refs[0].Whole() }

// position returns the offset of the first byte that is missing.
func (r *run) position() int64 { return r.refs[0].Offset + int64(r.filled) }

// end returns the offset after the last byte that is missing.
func (r *run) end() int64 {
	last := r.refs[len(r.refs)-1]
	return last.Offset + last.Size
}

// restart gives up what has arrived of the first chunk.
func (r *run) restart() { r.filled = 0 }

// give yields a chunk that the run has asked for: the first that is missing.
func (r *run) give(p []byte) error {
	ref := r.refs[0]
	r.refs, r.buf, r.filled = r.refs[1:], nil, 0
	r.reached = max(r.reached, ref.Offset+ref.Size)
	r.answered = true
	r.stopped = r.yield(ref, p)
	return r.stopped
}

// giveOther yields a chunk that came along.
func (r *run) giveOther(ref chunk.Ref, p []byte) error {
	r.reached = max(r.reached, ref.Offset+ref.Size)
	r.stopped = r.yield(ref, p)
	return r.stopped
}

// read gives all that is missing from a body that stands at its first byte and
// ends with its last.
func (r *run) read(b *body) error {
	for !r.done() {
		ref := r.refs[0]
		if r.buf == nil {
			r.buf = make([]byte, ref.Size)
		}
		n, err := io.ReadFull(b, r.buf[r.filled:])
		r.filled += n
		r.reached = max(r.reached, r.position())
		if err != nil {
			return b.cut(err)
		}
		if len(r.refs) == 1 && !readEnd(b) {
			return r.corrupt("more bytes arrive than belong to it")
		}
		if err := r.give(r.buf); err != nil {
			return err
		}
	}
	return nil
}

// cut explains why a body ended before it should.
func (b *body) cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &NoAnswerError{b.subject, fmt.Errorf("the body ends early: %w", io.ErrUnexpectedEOF)}
	}
	return err
}

// corrupt blames the upstream for something that cannot be the blob that the run
// is about.
func (r *run) corrupt(format string, args ...any) error {
	return &chunk.CorruptError{Source: "upstream", Ref: r.refs[0], Reason: fmt.Sprintf(format, args...)}
}

// ErrOtherSize says that a blob has another size than is known. One of two is wrong.
var ErrOtherSize = errors.New("its size is another")

// wrongSize blames the upstream for another size of the blob than is known.
func (r *run) wrongSize(n int64) error {
	return errors.Join(r.corrupt("the upstream's blob has %d bytes, not %d", n, r.total), ErrOtherSize)
}
