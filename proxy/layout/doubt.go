package layout

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// A large blob is given out in chunks, and only who has read all of it knows whether it
// matches its digest. If it does not, a layout's file may be to blame, or another place
// that some of the chunks came from. So the file is read and hashed once, when it is
// next wanted: one that is wrong is not given out any more until it has changed.

const (
	maxDoubts = 1024      // blobs
	checkFor  = time.Hour // at most, for one blob
)

// doubts are blobs that did not match their digest. The zero value is ready to use.
type doubts struct {
	mu  sync.Mutex
	all map[digest.Digest]string // the stamp of the file that is wrong, "" before it is known to be
}

func (ds *doubts) set(d digest.Digest, wrong string) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.all == nil || len(ds.all) >= maxDoubts {
		ds.all = make(map[digest.Digest]string)
	}
	ds.all[d] = wrong
}

func (ds *doubts) dispel(d digest.Digest) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	delete(ds.all, d)
}

func (ds *doubts) has(d digest.Digest) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	_, doubted := ds.all[d]
	return doubted
}

// wrong reports whether the file of that stamp is known to be wrong.
func (ds *doubts) wrong(d digest.Digest, stamp string) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return ds.all[d] == stamp
}

// Doubt has a blob's file checked when it is next wanted.
func (d *Dir) Doubt(blob digest.Digest) { d.doubts.set(blob, "") }

// dispel checks a blob that is in doubt.
func (d *Dir) dispel(ctx context.Context, blob digest.Digest) error {
	if !d.doubts.has(blob) {
		return nil
	}
	_, err := d.checks.Do(ctx, string(blob), checkFor, func(ctx context.Context) (any, error) {
		f, err := d.openBlob(ctx, blob) // of its own: who began may leave
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return nil, d.check(ctx, blob, f)
	})
	return err
}

// check reads all of a blob's file.
func (d *Dir) check(ctx context.Context, blob digest.Digest, f opened) error {
	hash := blob.Algorithm().Hash()
	for off := int64(0); off < f.size; off += chunk.Size {
		p, err := d.read(ctx, blob, f, off, min(chunk.Size, f.size-off))
		if err != nil {
			return err
		}
		_, _ = hash.Write(p)
	}
	if digest.NewDigest(blob.Algorithm(), hash) == blob {
		d.doubts.dispel(blob)
		return nil
	}
	d.doubts.set(blob, f.stamp)
	err := d.wrong(blob, f.size)
	d.report(err)
	return err
}

func (d *Dir) wrong(blob digest.Digest, size int64) error {
	return d.corrupt(blob, size, "the file does not have this digest")
}
