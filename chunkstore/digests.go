package chunkstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Digests returns the digests of n chunks of a blob, from chunk first on. Those that are not
// known are made of what is on disk, and are known from then on. The error is
// [chunk.ErrNotFound] unless all of such a blob of total bytes is stored, and has matched its
// digest.
func (s *Disk) Digests(ctx context.Context, d digest.Digest, total int64, first, n int) (chunk.Digests, error) {
	m, err := chunk.Grid(d, total)
	if err != nil {
		return nil, err
	}
	if first < 0 || n < 1 || first > m.Len()-n {
		return nil, fmt.Errorf("blob %s: digests of %d chunks from %d of %d", d, n, first, m.Len())
	}
	all := make(chunk.Digests, 0, n*chunk.DigestSize)
	for i := range n {
		raw, _, err := s.digested(ctx, m.At(first+i))
		if err != nil {
			return nil, err
		}
		all = append(all, raw...)
	}
	return all, nil
}

// Match returns a chunk if it has the SHA-256 digest want, and its blob, all of which is
// stored, has matched its own; else the error is [chunk.ErrNotFound]. A chunk that was
// compared once is read again only if it is the one.
func (s *Disk) Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error) {
	raw, p, err := s.digested(ctx, ref)
	if err != nil {
		return nil, err
	}
	if digest.NewDigestFromBytes(digest.SHA256, []byte(raw)) != want {
		return nil, chunk.ErrNotFound
	}
	if p != nil {
		return p, nil
	}
	if p, err = s.Get(ctx, ref); err == nil && digest.FromBytes(p) != want {
		err = chunk.ErrNotFound // it has changed since it was digested
	}
	return p, err
}

// digested returns the raw digest of a chunk of a blob that has matched its own, and the
// chunk, if it had to be read for that. What is read is not compared with what vouches for
// it: to be hashed once is enough for who knows what digest it should have.
func (s *Disk) digested(ctx context.Context, ref chunk.Ref) (raw string, p []byte, err error) {
	if ctx.Err() != nil {
		return "", nil, ctx.Err()
	}
	if !s.isWhole(ref.Blob, ref.Total) {
		return "", nil, fmt.Errorf("blob %s: %w", ref.Blob, chunk.ErrNotFound)
	}
	if raw = s.knownDigest(ref); raw != "" {
		return raw, nil, nil
	}
	defer s.Retain(ref.Blob, ref.Total)()
	if p, err = s.read(ref); err != nil {
		p, err = s.Get(ctx, ref) // which drops it, if it is gone
	}
	if err != nil {
		return "", nil, err
	}
	raw = rawDigest(digest.FromBytes(p))
	s.learn(ref, raw)
	return raw, p, nil
}

func (s *Disk) knownDigest(ref chunk.Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[ref.Blob]
	if b == nil || b.total != ref.Total {
		return ""
	}
	return b.sums.at(ref.Index()).digest
}

// learn remembers the digest of a chunk, by which it is found from then on.
func (s *Disk) learn(ref chunk.Ref, raw string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, i := s.blobs[ref.Blob], ref.Index()
	if b == nil || b.total != ref.Total || !b.have.has(i) {
		return // evicted meanwhile
	}
	b.sums.put(i, sum{digest: raw, link: b.sums.at(i).link})
	b.dirty[i] = time.Now()
	s.fresh[raw] = b.ref(i)
}

// Whole is a blob of which all is stored, and that has matched its digest.
type Whole struct {
	Digest digest.Digest
	Size   int64 // in bytes
}

// Wholes returns such blobs of least to most bytes, the one that was read last first.
func (s *Disk) Wholes(least, most int64) (all []Whole) {
	type read struct {
		Whole
		at time.Time
	}
	var found []read
	s.mu.Lock()
	for d, b := range s.blobs {
		if b.total >= least && b.total <= most && b.whole() {
			found = append(found, read{Whole{d, b.total}, b.read})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(found, func(a, b read) int {
		return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.Digest, b.Digest))
	})
	for _, f := range found {
		all = append(all, f.Whole)
	}
	return all
}

// Fits reports whether nothing is known by which p cannot be a chunk of its blob.
func (s *Stack) Fits(ref chunk.Ref, p []byte) bool {
	return s.Disk == nil || s.Disk.fits(ref, p) == nil
}

// Digests is [Disk.Digests].
func (s *Stack) Digests(ctx context.Context, d digest.Digest, total int64, first, n int) (chunk.Digests, error) {
	if s.Disk == nil {
		return nil, chunk.ErrNotFound
	}
	return s.Disk.Digests(ctx, d, total, first, n)
}

// Match is [Disk.Match].
func (s *Stack) Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error) {
	if s.Disk == nil {
		return nil, chunk.ErrNotFound
	}
	return s.Disk.Match(ctx, ref, want)
}

// Wholes is [Disk.Wholes].
func (s *Stack) Wholes(least, most int64) []Whole {
	if s.Disk == nil {
		return nil
	}
	return s.Disk.Wholes(least, most)
}
