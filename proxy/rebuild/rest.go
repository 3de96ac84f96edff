package rebuild

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// sift takes what is kept, and from the older layers what they have. One that cannot be read, as it has been evicted, has nothing.
func (j *attempt) sift(ctx context.Context) error {
	for _, i := range j.tar.absent() {
		if c := &j.Map.Chunks[i]; j.want.Kept != nil {
			if p := j.want.Kept(c); c.Fits(p) {
				if err := j.tar.put(c.Digest, p); err != nil {
					return err
				}
			}
		}
	}
	for _, old := range j.want.Old[:min(len(j.want.Old), maxOld)] {
		rest, err := j.newRest()
		if err != nil {
			return &diskError{err}
		}
		r := old.Open(ctx)
		err = j.tar.sift(ctx, r, oldTimes*max(j.Recipe.TarSize(), Least), rest.put)
		r.Close()
		var disk *diskError
		if errors.As(err, &disk) || ctx.Err() != nil {
			return err
		}
		j.like.add(oldMap{old.Digest, &rest.m, rest.has, rest.read})
	}
	return nil
}

// rest is what an older layer has that a newer one has not, in a file, each chunk at its place in the tar.
type rest struct {
	m    cdc.Map // of the tar, as far as it was read
	f    *os.File
	not  map[toc.Digest]bool // chunks of the newer one
	room *int64              // bytes that this one and others may still take
	full bool                // it has no more than the beginning of the tar
}

// newRest returns the rest of a layer that is about to be read.
func (j *attempt) newRest() (*rest, error) {
	f, err := j.edge.scratch()
	if err != nil {
		return nil, err
	}
	r := &rest{f: f, room: &j.room, not: j.like.has, full: j.like.has == nil}
	j.rests = append(j.rests, r)
	return r, nil
}

// put adds a chunk, unless there is no room, or there were too many.
func (r *rest) put(c cdc.Chunk, p []byte) error {
	mine := c.Inline == nil && r.has(&c)
	r.full = r.full || len(r.m.Chunks) == mostLike || mine && *r.room < c.Size
	if r.full {
		return nil
	}
	c.Inline = slices.Clone(c.Inline)
	r.m.Chunks = append(r.m.Chunks, c)
	if !mine {
		return nil
	}
	*r.room -= c.Size
	if _, err := r.f.WriteAt(p, c.Offset); err != nil {
		return &diskError{err}
	}
	return nil
}

// has reports whether it has a chunk of the layer that has content, and was read.
func (r *rest) has(c *cdc.Chunk) bool { return !r.not[c.Digest] }

// read returns chunks, given by their numbers, one after the other.
func (r *rest) read(_ context.Context, chunks []int) (all []byte, err error) {
	for _, i := range chunks {
		c := &r.m.Chunks[i]
		p := make([]byte, c.Size)
		if _, err := r.f.ReadAt(p, c.Offset); err != nil {
			return nil, err
		}
		if !c.Fits(p) {
			return nil, errOther
		}
		all = append(all, p...)
	}
	return all, nil
}
