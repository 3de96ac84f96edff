package lazy_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// unpacked is what a layer unpacks to, as somebody has it who may lie.
type unpacked struct {
	tar    []byte
	packed []byte // the map
	asked  int
}

func (u *unpacked) Map(context.Context) ([]byte, error) {
	u.asked++
	if u.packed == nil {
		return nil, chunk.ErrNotFound
	}
	return u.packed, nil
}

func (u *unpacked) ReaderAt(context.Context, *cdc.Map) io.ReaderAt { return bytes.NewReader(u.tar) }

func unpackedOf(t *testing.T, tar []byte) *unpacked {
	t.Helper()
	m, err := cdc.Of(t.Context(), bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return &unpacked{tar: tar, packed: packed}
}

func unzip(t *testing.T, layer []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	tar, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return tar
}

// contentOf reads a file of a layer.
func contentOf(t *testing.T, l *lazy.Layer, name string) string {
	t.Helper()
	e, ok := l.Lookup(name)
	if !ok {
		t.Fatalf("there is no %q", name)
	}
	p, err := io.ReadAll(io.NewSectionReader(toc.Open(l.Layer, &e, nil), 0, e.Size))
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// TestALayerIsReadByItsChunks: nobody reads its bytes, also when nobody says any more what it unpacks to. Once all of it is
// here, or its chunks could not be had, it is read by its bytes.
func TestALayerIsReadByItsChunks(t *testing.T) {
	c := openContents(t)
	derived := &lazy.Derived{Store: c.Store, Records: c.Records, Report: func(err error) { t.Error(err) }}
	p := layerOf(t, "file", "content")
	bytesOf := &source{p: p, err: errors.New("its bytes are read")}
	q := request(p, bytesOf)
	from := unpackedOf(t, unzip(t, p))
	q.Unpacked = from
	layers := lazy.NewLayers(derived)
	l, err := layers.Open(t.Context(), q)
	if err != nil || l.Map == nil || !l.Borrowed || contentOf(t, l, "file") != "content" {
		t.Fatalf("%+v, %v", l, err)
	}
	if e, _ := l.Lookup("file"); e.Digest != sumOf([]byte("content")) {
		t.Errorf("the file's digest is %v", e.Digest)
	}
	from.packed = nil
	if l, err = lazy.NewLayers(derived).Open(t.Context(), q); err != nil || l.Map == nil || from.asked != 1 {
		t.Errorf("when nobody says what it unpacks to: %v, asked %d times", err, from.asked)
	}
	bytesOf.err = nil
	for when, by := range map[string]func(*lazy.Layers, *lazy.Request){
		"all of it is here":    func(_ *lazy.Layers, q *lazy.Request) { q.Complete = func() bool { return true } },
		"its chunks are not":   func(l *lazy.Layers, q *lazy.Request) { l.ReadBytes(q.Layer.Digest) },
		"its map was a lie":    func(l *lazy.Layers, q *lazy.Request) { l.Distrust(q.Layer.Digest) },
		"nobody may unpack it": func(_ *lazy.Layers, q *lazy.Request) { q.Unpacked = nil },
	} {
		layers, q := lazy.NewLayers(derived), q
		if _, err := layers.Open(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		by(layers, &q)
		if l, err := layers.Open(t.Context(), q); err != nil || l.Map != nil || contentOf(t, l, "file") != "content" {
			t.Errorf("%s: %+v, %v", when, l, err)
		}
	}
}

// TestMapsOfNoUse leave a layer to be read by its bytes.
func TestMapsOfNoUse(t *testing.T) {
	p := layerOf(t, "file", "content")
	for name, from := range map[string]*unpacked{
		"none":                 {},
		"no map":               {packed: []byte("map")},
		"of what is no tar":    unpackedOf(t, bytes.Repeat([]byte("no tar "), 1000)),
		"of a tar that is cut": unpackedOf(t, unzip(t, p)[:515]),
	} {
		q := request(p, &source{p: p})
		q.Unpacked = from
		l, err := lazy.NewLayers(&lazy.Derived{}).Open(t.Context(), q)
		if err != nil || l.Map != nil || contentOf(t, l, "file") != "content" {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}
