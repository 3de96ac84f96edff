package rebuild

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/recipe"
)

// mapOf is a map of chunks of sizes, of which those that are negative are inline.
func mapOf(sizes ...int64) *cdc.Map {
	m := new(cdc.Map)
	for _, n := range sizes {
		c := cdc.Chunk{Offset: m.Size(), Size: n}
		if n < 0 {
			c.Size, c.Inline = -n, make([]byte, -n)
		} else {
			c.Digest[0] = byte(len(m.Chunks)) + 1
		}
		m.Chunks = append(m.Chunks, c)
	}
	return m
}

// recipeOf is a recipe of a tar of a size.
func recipeOf(size int64) *recipe.Recipe {
	return &recipe.Recipe{
		Blob: toc.Digest{1}, DiffID: toc.Digest{2}, Size: size/2 + 20,
		Encoder: recipe.Encoder{Family: recipe.Go, Level: 6},
		Members: []recipe.Member{{Header: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, Size: size}}, Tail: []byte{0},
	}
}

// packed is bytes in zstd.
func packed(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(slices.Concat(parts...), nil)
}

func offerOf(t testing.TB, sizes ...int64) ([]byte, Offer) {
	t.Helper()
	m := mapOf(sizes...)
	o := Offer{recipeOf(m.Size()), m}
	p, err := EncodeOffer(o.Recipe, o.Map)
	if err != nil {
		t.Fatal(err)
	}
	return p, o
}

func TestOfferComesBack(t *testing.T) {
	p, want := offerOf(t, -512, 700, -1024, 65536, 262144)
	got, err := DecodeOffer(p)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, not %+v", got, err, want)
	}
	if _, err := EncodeOffer(recipeOf(1000), mapOf(999)); !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("of two tars: %v", err)
	}
	large := mapOf(slices.Repeat([]int64{-4096}, MaxOffer/4096)...)
	if _, err := EncodeOffer(recipeOf(large.Size()), large); !errors.Is(err, toc.ErrLimit) {
		t.Errorf("of too large a map: %v", err)
	}
}

func TestOffersThatLie(t *testing.T) {
	how, err := recipeOf(5).Encode()
	if err != nil {
		t.Fatal(err)
	}
	size, chunks := binary.AppendUvarint(nil, uint64(len(how))), mapOf(5).Append(nil)
	whole := packed(t, size, how, chunks)
	if _, err := DecodeOffer(whole); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		p    []byte
		want error
	}{
		"nothing":                  {nil, toc.ErrMalformed},
		"no zstd":                  {[]byte("offer"), toc.ErrMalformed},
		"cut off":                  {whole[:len(whole)-5], toc.ErrMalformed},
		"more behind it":           {append(bytes.Clone(whole), 'x'), toc.ErrMalformed},
		"no size":                  {packed(t, bytes.Repeat([]byte{0xff}, 20)), toc.ErrMalformed},
		"a size of more than all":  {packed(t, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, how, chunks), toc.ErrMalformed},
		"no recipe":                {packed(t, []byte{0}, chunks), toc.ErrFormat},
		"no map":                   {packed(t, size, how), toc.ErrFormat},
		"a map of another tar":     {packed(t, size, how, mapOf(6).Append(nil)), toc.ErrMalformed},
		"more bytes behind a map":  {packed(t, size, how, chunks, []byte{0}), toc.ErrMalformed},
		"a claim of 1 GiB":         {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40}, toc.ErrMalformed},
		"zeros, many times":        {bytes.Repeat(packed(t, make([]byte, 1<<20)), 65), toc.ErrMalformed},
		"more than there may come": {make([]byte, MaxOffer+1), toc.ErrLimit},
	} {
		if _, err := DecodeOffer(c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChunksComeBack(t *testing.T) {
	m := mapOf(-512, 1, -512, 2, 3, -512, 4, 5, -512)
	for want, chunks := range map[string][]int{
		"1":     {1},
		"1-7":   {1, 3, 4, 6, 7},
		"1-3,6": {1, 3, 6},
		"1,4-6": {1, 4, 6},
		"3,7":   {3, 7},
		"3-4,7": {3, 4, 7},
		"1,4,7": {1, 4, 7},
	} {
		query := FormatChunks(chunks, m)
		got, err := ParseChunks(query, m)
		if query != want || err != nil || !slices.Equal(got, chunks) {
			t.Errorf("%v: %s and %v, %v, not %s", chunks, query, got, err, want)
		}
	}
}

func TestChunksThatNobodyMayAskFor(t *testing.T) {
	few := mapOf(-512, 1, -512, 2, 3, -512, 4, 5, -512)
	many := mapOf(slices.Repeat([]int64{1}, 2000)...)
	large := mapOf(slices.Repeat([]int64{cdc.MaxSize}, 20)...)
	odd := make([]int, MaxRanges)
	for i := range odd {
		odd[i] = 2 * i
	}
	for _, c := range []struct {
		m     *cdc.Map
		query string
		want  error
	}{
		{few, "", toc.ErrMalformed}, {few, "-", toc.ErrMalformed}, {few, "1-", toc.ErrMalformed}, {few, "-1", toc.ErrMalformed},
		{few, "01", toc.ErrMalformed}, {few, "+1", toc.ErrMalformed}, {few, " 1", toc.ErrMalformed}, {few, "1,", toc.ErrMalformed},
		{few, "1-3-4", toc.ErrMalformed}, {few, "4-3", toc.ErrMalformed}, {few, "3-3", toc.ErrMalformed}, {few, "3,1", toc.ErrMalformed},
		{few, "1,1", toc.ErrMalformed}, {few, "1-4,4-7", toc.ErrMalformed}, {few, "0", toc.ErrMalformed}, {few, "1-5", toc.ErrMalformed},
		{few, "9", toc.ErrMalformed}, {few, "7-9", toc.ErrMalformed}, {few, "99999999999999999999", toc.ErrMalformed}, {few, "1-9223372036854775807", toc.ErrMalformed},
		{new(cdc.Map), "0", toc.ErrMalformed},
		{many, "0-1023", nil}, {many, "0-1024", toc.ErrLimit}, {many, "0-1000,1002-1100", toc.ErrLimit},
		{large, "0-15", nil}, {large, "0-16", toc.ErrLimit}, {large, "0-10,12-17", toc.ErrLimit},
		{many, FormatChunks(odd, many), nil}, {many, FormatChunks(odd, many) + ",1999", toc.ErrLimit},
	} {
		if _, err := ParseChunks(c.query, c.m); !errors.Is(err, c.want) {
			t.Errorf("%.40q: %v", c.query, err)
		}
	}
}

func FuzzDecodeOffer(f *testing.F) {
	for _, sizes := range [][]int64{{5}, {-512, 700, -1024, 65536, 262144}} {
		p, _ := offerOf(f, sizes...)
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		o, err := DecodeOffer(p)
		if err != nil {
			o, err = DecodeOffer(packed(t, p)) // else little that is no zstd gets further
		}
		if err != nil {
			return
		}
		again, err := EncodeOffer(o.Recipe, o.Map)
		if err != nil {
			t.Fatalf("it is not encoded again: %v", err)
		}
		if got, err := DecodeOffer(again); err != nil || !reflect.DeepEqual(got.Recipe, o.Recipe) || got.Map.Size() != o.Map.Size() {
			t.Fatalf("it becomes another one, %v", err)
		}
	})
}

func FuzzParseChunks(f *testing.F) {
	f.Add("1-3,6", int64(7))
	f.Add("0,2-5,9223372036854775807", int64(-1))
	f.Fuzz(func(t *testing.T, query string, which int64) {
		m := new(cdc.Map)
		for i := range 3000 {
			c := cdc.Chunk{Offset: m.Size(), Size: 1 + which>>(i%64)&0xffff}
			if i > 0 && which>>(i%63)&1 == 1 && m.Chunks[i-1].Inline == nil {
				c.Inline = make([]byte, c.Size)
			}
			m.Chunks = append(m.Chunks, c)
		}
		chunks, err := ParseChunks(query, m)
		if err != nil {
			return
		}
		size := int64(0)
		for i, c := range chunks {
			if size += m.Chunks[c].Size; m.Chunks[c].Inline != nil || i > 0 && c <= chunks[i-1] {
				t.Fatalf("%q: number %d", query, c)
			}
		}
		if len(chunks) == 0 || len(chunks) > MaxChunks || size > MaxContents {
			t.Fatalf("%q: %d chunks of %d bytes", query, len(chunks), size)
		}
		again, err := ParseChunks(FormatChunks(chunks, m), m)
		if err != nil || !slices.Equal(again, chunks) {
			t.Fatalf("%q: other chunks, %v", query, err)
		}
	})
}
