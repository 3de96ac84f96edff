package squashfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/granary-oci/granary/toc"
)

// packedBlock returns an unpacker and a compressed metadata block of a golden image.
func packedBlock(t testing.TB, name string) (unpacker, []byte) {
	t.Helper()
	image, err := os.ReadFile(filepath.Join("testdata", name+".squashfs"))
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(image)
	sb, err := readSuperblock(r, int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	unpack, err := unpackerOf(r, sb)
	if err != nil {
		t.Fatal(err)
	}
	block := image[sb.inodes:]
	return unpack, block[metaHeader : metaHeader+int(le.Uint16(block))]
}

var packers = []string{"gzip", "lzo", "xz", "lz4", "zstd"}

func TestABlockIsNotUnpackedBeyondItsLimit(t *testing.T) {
	for _, name := range packers {
		unpack, packed := packedBlock(t, name)
		p, err := unpack(packed, metaBlock)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := unpack(packed, len(p)); err != nil {
			t.Errorf("%s: just as much as it may be: %v", name, err)
		}
		if _, err := unpack(packed, len(p)-1); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("%s: a byte too many: %v", name, err)
		}
		if p, err := unpack(packed[:len(packed)/2], metaBlock); err == nil {
			t.Errorf("%s: half of it gave %d bytes", name, len(p))
		}
	}
}

func FuzzUnpack(f *testing.F) {
	unpackers := make([]unpacker, len(packers))
	for i, name := range packers {
		unpack, packed := packedBlock(f, name)
		unpackers[i] = unpack
		f.Add(byte(i), packed)
	}
	f.Fuzz(func(t *testing.T, i byte, packed []byte) {
		p, err := unpackers[int(i)%len(unpackers)](packed, metaBlock)
		if err == nil && len(p) > metaBlock {
			t.Fatalf("%s: %d bytes", packers[i], len(p))
		}
		if err != nil && !errors.Is(err, toc.ErrMalformed) {
			t.Fatal(err)
		}
	})
}
