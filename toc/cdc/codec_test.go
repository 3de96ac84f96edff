package cdc

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

func TestCodec(t *testing.T) {
	for name, p := range map[string][]byte{"a layer": layer(t, 0), "nothing": nil, "a byte": {1}, "noise": noise(1 << 20)} {
		m := mapOf(t, p)
		encoded := m.Append([]byte("before"))[len("before"):]
		got, err := Decode(encoded)
		if err != nil || got.Size() != m.Size() || !bytes.Equal(got.Append(nil), encoded) {
			t.Errorf("%s: another map, %v", name, err)
		}
		if len(m.Chunks) > 0 && !reflect.DeepEqual(got, m) {
			t.Errorf("%s: other chunks", name)
		}
	}
}

// TestEncodingIsFrozen: what a site has kept or sends is read by the next version.
func TestEncodingIsFrozen(t *testing.T) {
	header := rawHeader('0', 3, nil)
	p := append(bytes.Clone(header), filled([]byte("abc"))...)
	sum := sha256.Sum256([]byte("abc"))
	want := "GRNCMAP\x01" + "\x03" + "\x81\x08" + "\x06" + "\xfb\x07" + string(sum[:]) + string(header) + string(make([]byte, 509))
	if got := string(mapOf(t, p).Append(nil)); got != want {
		t.Errorf("encoded as\n%s", hex.Dump([]byte(got)))
	}
}

func TestMalformedMaps(t *testing.T) {
	digest := string(noise(32))
	encoding := func(numbers ...uint64) string {
		p := []byte(magic)
		for _, n := range numbers {
			p = binary.AppendUvarint(p, n)
		}
		return string(p)
	}
	for _, c := range []struct {
		name, p string
		want    error
	}{
		{"nothing", "", toc.ErrFormat},
		{"another version", "GRNCMAP\x02\x00", toc.ErrFormat},
		{"no count", magic, toc.ErrMalformed},
		{"a count without end", magic + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", toc.ErrMalformed},
		{"too many", encoding(MaxChunks + 1), toc.ErrLimit},
		{"many that are not there", encoding(MaxChunks, 2), toc.ErrMalformed},
		{"an empty chunk", encoding(1, 0) + digest, toc.ErrMalformed},
		{"an empty chunk inline", encoding(1, 1) + digest, toc.ErrMalformed},
		{"too large a chunk", encoding(1, 2*MaxSize+2) + digest, toc.ErrMalformed},
		{"too large a chunk inline", encoding(1, 2*MaxInline+3) + string(noise(MaxInline+1)), toc.ErrMalformed},
		{"two inline", encoding(2, 3, 3) + "ab" + digest, toc.ErrMalformed},
		{"half a digest", encoding(1, 2) + digest[:16], toc.ErrMalformed},
		{"too few bytes", encoding(2, 2, 1001) + digest + "ab", toc.ErrMalformed},
		{"something behind", encoding(1, 2) + digest + "a", toc.ErrMalformed},
	} {
		if m, err := Decode([]byte(c.p)); !errors.Is(err, c.want) || m != nil {
			t.Errorf("%s: %v, %v", c.name, m, err)
		}
	}
	if _, err := Decode([]byte(encoding(3, 3, 2, 3) + digest + "ab")); err != nil {
		t.Errorf("the smallest map of three chunks: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(mapOf(f, tarOf(f, 0, file{name: "f", content: []byte("abc")})).Append(nil))
	f.Add([]byte(magic + "\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := Decode(p)
		if err != nil {
			return
		}
		if cap(m.Chunks) > len(p)/16+1 {
			t.Fatalf("%d bytes take %d chunks", len(p), cap(m.Chunks))
		}
		again, err := Decode(m.Append(nil))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("another map, %v", err)
		}
	})
}

// TestPack: what is packed is the same again, and what is not sound is refused.
func TestPack(t *testing.T) {
	m := mapOf(t, layer(t, 0))
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unpack(p)
	if err != nil || !reflect.DeepEqual(again, m) {
		t.Errorf("it is another one: %v", err)
	}
	for at := int64(0); at < m.Size(); at += 1000 {
		if c := m.Chunks[m.Find(at)]; at < c.Offset || at >= c.Offset+c.Size {
			t.Errorf("byte %d is not in %+v", at, c)
		}
	}
	for name, p := range map[string][]byte{"nothing": nil, "cut": p[:len(p)/2], "no zstd": []byte("GRNCMAP"), "no map": zstdOf(t, []byte("map")), "a bomb": zstdOf(t, make([]byte, MaxPacked+1)), "too much": make([]byte, MaxPacked+1)} {
		if _, err := Unpack(p); err == nil {
			t.Errorf("%s is a map", name)
		}
	}
}

func zstdOf(t *testing.T, p []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(p, nil)
}
