package chunkstore

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// FuzzIndexRecords feeds the decoders what a damaged index may hold. What they
// accept they must write again as it was.
func FuzzIndexRecords(f *testing.F) {
	d := digest.FromString("x")
	f.Add([]byte(d), encodeBlob(3<<20, true, time.Unix(1, 0)))
	f.Add(chunkKey(d, 2), encodeChunk(true, sum{digest: rawDigest(d), link: "0123456789abcdef0123456789abcdef"}))
	f.Add([]byte(rawDigest(d)), encodePlace(d, 7))
	f.Add([]byte("sha256:short"), []byte{0, 32, 1})
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if b, err := decodeBlob(k, v); err == nil {
			if again := encodeBlob(b.total, b.proven, b.read); b.read.Unix() > 0 && v[9] == 0 && v[10] == 0 && v[11] == 0 && string(again) != string(v) {
				t.Errorf("blob %x became %x", v, again)
			}
		}
		if have, s, err := decodeChunk(v); err == nil && string(encodeChunk(have, s)) != string(v) {
			t.Errorf("chunk %x became %x", v, encodeChunk(have, s))
		}
		if d, i, err := decodePlace(v); err == nil && string(encodePlace(d, i)) != string(v) {
			t.Errorf("place %x became %x", v, encodePlace(d, i))
		}
	})
}
