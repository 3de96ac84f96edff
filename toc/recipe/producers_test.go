package recipe

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// TestProducers makes a recipe of what each library writes, at each level, and with it the same bytes.
func TestProducers(t *testing.T) {
	for _, p := range producers() {
		t.Run(p.name, func(t *testing.T) {
			content := sample(70_000)
			telling := strings.HasSuffix(p.name, " -1") // of less, several encoders may make the same
			if telling {
				content = sample(blockSize + 70_000)
			}
			blob := p.pack(t, content)
			r := found(t, blob)
			if telling && r.Encoder != p.encoder {
				t.Errorf("found %v, want %v", r.Encoder, p.encoder)
			}
			if r.Blob.OCI() != digest.FromBytes(blob) || r.Size != int64(len(blob)) || r.DiffID.OCI() != digest.FromBytes(content) || r.TarSize() != int64(len(content)) {
				t.Errorf("the recipe is of other content: %+v", r)
			}
			checkRebuilt(t, r, content, blob)
		})
	}
}

// TestSizes has tars that end where blocks and windows do.
func TestSizes(t *testing.T) {
	content := sample(2 * blockSize)
	check := func(p producer, sizes ...int) {
		for _, size := range sizes {
			blob := p.pack(t, content[:size])
			checkRebuilt(t, found(t, blob), content[:size], blob)
		}
	}
	for _, p := range []producer{goLevel(1, 1), klauspostLevel(-1, 5), pgzipLevel(-1, 5)} {
		check(p, 0, 1, blockTail, 32<<10+1, 64<<10)
	}
	check(pgzipLevel(-1, 5), blockSize, blockSize+blockTail+1, 2*blockSize)
}

// TestPrograms has layers that programs have written. See testdata/make.sh.
func TestPrograms(t *testing.T) {
	for _, c := range []struct {
		name    string
		encoder Encoder // none: the layer has no recipe
		says    string
	}{
		{"buildah", Encoder{Pgzip117, 5}, ""}, // Debian's 1.28.2, which has klauspost/compress 1.15
		{"gzip", Encoder{}, "as GNU gzip, pigz and zlib make it"},
		{"pigz", Encoder{}, "as GNU gzip, pigz and zlib make it"},
		{"python", Encoder{}, "as GNU gzip, pigz and zlib make it"},
		{"node", Encoder{}, "as GNU gzip, pigz and zlib make it"},
		{"libdeflate", Encoder{}, "as Go's libraries, libdeflate and Java make it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob := golden(t, c.name+".tar.gz")
			r, err := find(blob)
			if c.says != "" {
				if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("error %v, want one that says %q", err, c.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Encoder != c.encoder {
				t.Errorf("found %v, want %v", r.Encoder, c.encoder)
			}
			checkRebuilt(t, r, unpacked(t, blob), blob)
		})
	}
}

// TestEStargz has a member for each file, and one that is the footer.
func TestEStargz(t *testing.T) {
	tar := tarOf(t, 200)
	b, err := estargz.Build(sectionOf(tar))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var blob bytes.Buffer
	if _, err := blob.ReadFrom(b); err != nil {
		t.Fatal(err)
	}
	r := found(t, blob.Bytes())
	if len(r.Members) < 200 || r.Encoder != (Encoder{Go, 9}) {
		t.Errorf("found %d members by %v", len(r.Members), r.Encoder)
	}
	checkRebuilt(t, r, unpacked(t, blob.Bytes()), blob.Bytes())
	if stored, err := r.Encode(); err != nil || len(stored) > 200+5*len(r.Members) {
		t.Errorf("it takes %d bytes: %v", len(stored), err)
	}
}
