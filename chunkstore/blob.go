package chunkstore

import (
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// blob is what the store knows of one blob. All fields are guarded by Disk.mu.
type blob struct {
	digest       digest.Digest
	total        int64
	proven       bool      // it has matched its digest
	read         time.Time // when it was last read
	readRecorded time.Time // what the index says of that, which may lag by a minute

	have    bitmap // chunks whose bytes are in the file
	checked bitmap // of those, the ones that this process wrote or has checked
	sums    sums
	shares  map[int]share // of chunks that others share bytes on disk with, or did

	writing  map[int]*pendingWrite // chunks on their way into the file
	dirty    map[int]time.Time     // chunks of which the index does not know yet, since when
	changed  bool                  // the blob's own record differs from the index
	recorded bool                  // the index has a record of it
	made     bool                  // the file was created and its directory not synced since
	drops    int                   // times that all of it was dropped
	users    int                   // readers and writers that hold it against eviction

	holdsNothing bool // it was asked whether it holds others
}

func newBlob(d digest.Digest, total int64) *blob {
	n := chunk.Count(total)
	return &blob{
		digest:  d,
		total:   total,
		have:    newBitmap(n),
		checked: newBitmap(n),
		sums:    make(sums),
		shares:  make(map[int]share),
		writing: make(map[int]*pendingWrite),
		dirty:   make(map[int]time.Time),
	}
}

func (b *blob) chunks() int    { return chunk.Count(b.total) }
func (b *blob) complete() bool { return b.have.count() == b.chunks() }

// whole reports whether all of a blob is stored and known to match its digest.
func (b *blob) whole() bool { return b.complete() && (b.proven || b.chunks() == 1) }

// idle reports whether nothing is stored of the blob and nobody uses it.
func (b *blob) idle() bool { return b.users == 0 && !b.recorded && b.have.count() == 0 }

// bytes returns how many bytes of the blob are stored.
func (b *blob) bytes() int64 {
	n := int64(b.have.count()) * chunk.Size
	if last := b.chunks() - 1; b.have.has(last) {
		n += b.ref(last).Size - chunk.Size
	}
	return n
}

func (b *blob) ref(i int) chunk.Ref {
	off := int64(i) * chunk.Size
	return chunk.Ref{Blob: b.digest, Total: b.total, Offset: off, Size: min(chunk.Size, b.total-off)}
}

// voucher is a copy of all that is needed to check one chunk without the lock.
type voucher struct {
	ref           chunk.Ref // with the digest, if the chunk has one
	before, after chunk.Link
	linked        bool
}

// voucher returns what vouches for chunk i: its own digest, or the links that it lies
// between. Of a blob that has matched its digest these come first, for they are the blob's,
// while the digest may have been made later, of what was on disk by then. ok is false if
// nothing vouches for it yet.
func (b *blob) voucher(i int) (v voucher, ok bool) {
	v.ref = b.ref(i)
	s := b.sums.at(i)
	if i > 0 {
		v.before = b.sums.at(i - 1).link
	}
	v.after = s.link
	v.linked = (i == 0 || v.before != "") && (v.after != "" || v.ref.Last() && b.proven)
	if v.linked && b.proven && !v.ref.Whole() {
		return v, true
	}
	if s.digest != "" {
		v.ref.Digest = digest.NewDigestFromBytes(digest.SHA256, []byte(s.digest))
	}
	if v.ref.Want() != "" {
		v.linked = false
		return v, true
	}
	return v, v.linked
}

func (v voucher) check(p []byte) error {
	if v.linked {
		return v.ref.CheckLink(diskName, v.before, v.after, p)
	}
	return v.ref.Check(diskName, p)
}

// path returns where the bytes of d are: two hex digits spread the blobs over
// directories that stay small.
func (s *Disk) path(d digest.Digest) string {
	return filepath.Join(s.dir, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}
