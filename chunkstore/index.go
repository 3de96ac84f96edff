package chunkstore

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// The index has three buckets.
//
//	blobs    digest               → flags u8, total u64, last read (unix s) u64
//	chunks   digest, position u32 → flags u8, n u8, digest [n]byte, m u8, link [m]byte
//	digests  SHA-256 of a chunk   → position u32, digest of a blob that holds it
//
// Numbers are big-endian. Digests of blobs are in their text form, digests of
// chunks are the 32 raw bytes of SHA-256.
var (
	blobsBucket   = []byte("blobs")
	chunksBucket  = []byte("chunks")
	digestsBucket = []byte("digests")
)

const (
	flagProven = 1 << 0 // of a blob: it has matched its digest
	flagHave   = 1 << 0 // of a chunk: its bytes are in the blob's file
)

// sum is what vouches for the bytes of one chunk.
type sum struct {
	digest string     // raw SHA-256 of the chunk, or empty
	link   chunk.Link // the blob's hash at the chunk's end, or empty
}

// sums holds what vouches for a blob's chunks, in pages made when they are
// needed: a blob may claim to be far larger than what is stored of it.
type sums map[int]*[sumsPage]sum

const sumsPage = 64

func (s sums) at(i int) sum {
	if p := s[i/sumsPage]; p != nil {
		return p[i%sumsPage]
	}
	return sum{}
}

func (s sums) put(i int, v sum) {
	p := s[i/sumsPage]
	if p == nil {
		p = new([sumsPage]sum)
		s[i/sumsPage] = p
	}
	p[i%sumsPage] = v
}

var errIndex = errors.New("index is damaged")

func encodeBlob(total int64, proven bool, read time.Time) []byte {
	p := make([]byte, 1, 17)
	if proven {
		p[0] |= flagProven
	}
	p = binary.BigEndian.AppendUint64(p, uint64(total))
	return binary.BigEndian.AppendUint64(p, uint64(max(read.Unix(), 0)))
}

func decodeBlob(k, v []byte) (*blob, error) {
	d := digest.Digest(k)
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: blob %q: %w", errIndex, k, err)
	}
	if len(v) != 17 || v[0]&^flagProven != 0 {
		return nil, fmt.Errorf("%w: blob %s: record of %d bytes", errIndex, d, len(v))
	}
	total := binary.BigEndian.Uint64(v[1:])
	if total > chunk.MaxBlobSize {
		return nil, fmt.Errorf("%w: blob %s: size %d", errIndex, d, total)
	}
	b := newBlob(d, int64(total))
	b.proven = v[0]&flagProven != 0
	b.readRecorded, b.recorded = b.read, true
	b.read = time.Unix(int64(binary.BigEndian.Uint64(v[9:])&(1<<40-1)), 0)
	return b, nil
}

func chunkKey(d digest.Digest, i int) []byte {
	return binary.BigEndian.AppendUint32([]byte(d), uint32(i))
}

func encodeChunk(have bool, s sum) []byte {
	p := make([]byte, 1, 3+len(s.digest)+len(s.link))
	if have {
		p[0] |= flagHave
	}
	p = append(p, byte(len(s.digest)))
	p = append(p, s.digest...)
	p = append(p, byte(len(s.link)))
	return append(p, s.link...)
}

func decodeChunk(v []byte) (have bool, s sum, err error) {
	bad := fmt.Errorf("%w: chunk record of %d bytes", errIndex, len(v))
	if len(v) < 3 || v[0]&^flagHave != 0 {
		return false, sum{}, bad
	}
	n := int(v[1])
	if n != 0 && n != 32 || len(v) < 3+n {
		return false, sum{}, bad
	}
	m := int(v[2+n])
	if m != 0 && m != 32 && m != 64 || len(v) != 3+n+m {
		return false, sum{}, bad
	}
	return v[0]&flagHave != 0, sum{string(v[2 : 2+n]), chunk.Link(v[3+n:])}, nil
}

func encodePlace(d digest.Digest, i int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(i)), d...)
}

func decodePlace(v []byte) (d digest.Digest, i int, err error) {
	if len(v) < 4 {
		return "", 0, fmt.Errorf("%w: place of %d bytes", errIndex, len(v))
	}
	d = digest.Digest(v[4:])
	if err := d.Validate(); err != nil {
		return "", 0, fmt.Errorf("%w: place in %q: %w", errIndex, v[4:], err)
	}
	return d, int(binary.BigEndian.Uint32(v)), nil
}

// openIndex opens the index at path, made if it is not there, and returns the
// records of all blobs. An index that cannot be read is an errIndex.
func openIndex(path string) (db *bbolt.DB, blobs map[digest.Digest]*blob, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a page beyond the end of a cut file
	defer recoverDamage(&err)
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType,
		// The list of free pages is kept: without it bbolt looks for them in a
		// goroutine of its own, whose panic at a damaged page nobody can catch.
		NoFreelistSync: false,
	})
	if err != nil {
		if !errors.Is(err, os.ErrPermission) && !errors.Is(err, bbolterrors.ErrTimeout) && fileSize(path) > 0 {
			err = fmt.Errorf("%w: %w", errIndex, err)
		}
		return nil, nil, err
	}
	blobs = make(map[digest.Digest]*blob)
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{blobsBucket, chunksBucket, digestsBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return loadBlobs(tx, blobs)
	})
	if err != nil {
		_ = db.Close()
		return nil, nil, err
	}
	return db, blobs, nil
}

// update runs a transaction on the index; damage that it meets is an errIndex.
func (s *Disk) update(f func(*bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverDamage(&err)
	return s.db.Update(f)
}

// view is update for reading.
func (s *Disk) view(f func(*bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverDamage(&err)
	return s.db.View(f)
}

// recoverDamage turns the panic or memory fault with which bbolt answers a
// damaged page into an errIndex.
func recoverDamage(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %v", errIndex, r)
	}
}

// loadBlobs reads every record once, so that damage shows now and not when a
// client waits.
func loadBlobs(tx *bbolt.Tx, blobs map[digest.Digest]*blob) error {
	err := tx.Bucket(blobsBucket).ForEach(func(k, v []byte) error {
		b, err := decodeBlob(k, v)
		if err == nil {
			blobs[b.digest] = b
		}
		return err
	})
	if err != nil {
		return err
	}
	return tx.Bucket(chunksBucket).ForEach(func(k, v []byte) error {
		have, s, err := decodeChunk(v)
		if err != nil {
			return err
		}
		if len(k) < 4 {
			return fmt.Errorf("%w: chunk key of %d bytes", errIndex, len(k))
		}
		b := blobs[digest.Digest(k[:len(k)-4])]
		i := int(binary.BigEndian.Uint32(k[len(k)-4:]))
		if b == nil || i >= b.chunks() {
			return fmt.Errorf("%w: chunk %d of %q does not exist", errIndex, i, k[:len(k)-4])
		}
		b.sums.put(i, s)
		if have {
			b.have.set(i)
		}
		return nil
	})
}

// rawDigest returns the bytes of a valid digest.
func rawDigest(d digest.Digest) string {
	raw, _ := hex.DecodeString(d.Encoded())
	return string(raw)
}

// rawWant returns the raw SHA-256 that a chunk must have, or "" while that is not known.
func rawWant(ref chunk.Ref) string {
	if want := ref.Want(); want != "" && want.Algorithm() == digest.SHA256 {
		return rawDigest(want)
	}
	return ""
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
