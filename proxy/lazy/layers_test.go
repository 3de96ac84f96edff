package lazy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
)

// layerOf makes an ordinary tar+gzip of one file.
func layerOf(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, content)
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// source is a layer as somebody may read it, or may not.
type source struct {
	p     []byte
	err   error         // of reading all of it; nil for none
	begin chan struct{} // what reading all of it waits for; nil for nothing
}

func (s *source) Size() int64                          { return int64(len(s.p)) }
func (s *source) ReaderAt(context.Context) io.ReaderAt { return bytes.NewReader(s.p) }
func (s *source) Stream(context.Context) io.ReadCloser {
	if s.begin != nil {
		<-s.begin
	}
	if s.err != nil {
		return io.NopCloser(iotest.ErrReader(s.err))
	}
	return io.NopCloser(bytes.NewReader(s.p))
}

func request(p []byte, s *source) lazy.Request {
	return lazy.Request{Host: "origin.test", Layer: ocispec.Descriptor{Digest: digest.FromBytes(p)}, Source: s}
}

// TestADenialBindsWhoeverEarnedIt and not who has waited for the same layer.
func TestADenialBindsWhoeverEarnedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := layerOf(t, "f", "content")
		layers := lazy.NewLayers(&lazy.Derived{})
		denied, allowed := &source{p, chunk.ErrDenied, make(chan struct{})}, &source{p: p}
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { _, err := layers.Open(t.Context(), request(p, denied)); first <- err }()
		synctest.Wait()
		go func() { _, err := layers.Open(t.Context(), request(p, allowed)); second <- err }()
		synctest.Wait()
		close(denied.begin)
		if err := <-first; !errors.Is(err, chunk.ErrDenied) {
			t.Errorf("who is denied: %v", err)
		}
		if err := <-second; err != nil {
			t.Errorf("who is not: %v", err)
		}
	})
}

// TestWhatAnotherMemberSaid of a layer is asked for once, and used until it is found to be
// wrong.
func TestWhatAnotherMemberSaid(t *testing.T) {
	p := layerOf(t, "f", "content")
	maker := openContents(t)
	made := &lazy.Derived{Store: maker.Store, Records: maker.Records, Report: func(err error) { t.Error(err) }}
	if _, err := lazy.NewLayers(made).Open(t.Context(), request(p, &source{p: p})); err != nil {
		t.Fatal(err)
	}
	asked := 0
	q := request(p, &source{p, errors.New("the layer is read"), nil})
	q.Ask = func(ctx context.Context, kind lazy.Kind) ([]byte, error) {
		asked++
		return made.Get(ctx, kind, digest.FromBytes(p))
	}
	layers := lazy.NewLayers(&lazy.Derived{})
	for range 2 {
		l, err := layers.Open(t.Context(), q)
		if err != nil || !l.Borrowed || l.Format != toc.TarGzip {
			t.Fatalf("%+v, %v", l, err)
		}
		e, _ := l.Lookup("f")
		if got, err := io.ReadAll(io.NewSectionReader(toc.Open(l.Layer, &e, nil), 0, e.Size)); string(got) != "content" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	layers.Distrust(digest.FromBytes(p))
	q.Source = &source{p: p}
	if l, err := layers.Open(t.Context(), q); err != nil || l.Borrowed {
		t.Errorf("once it is distrusted: %+v, %v", l, err)
	}
	if asked != 1 {
		t.Errorf("asked %d times, want 1", asked)
	}
}

// TestALayerIsOpenedAgainWithoutIt has a node that is started again: what it once opened
// it opens without asking for any of the layer's bytes.
func TestALayerIsOpenedAgainWithoutIt(t *testing.T) {
	p := layerOf(t, "f", "content")
	var tarball bytes.Buffer
	w := tar.NewWriter(&tarball)
	for _, name := range []string{"a", "b"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: 1 << 20, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(make([]byte, 1<<20))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	kept := openContents(t)
	derived := &lazy.Derived{Store: kept.Store, Records: kept.Records, Report: func(err error) { t.Error(err) }}
	for format, p := range map[toc.Format][]byte{toc.TarGzip: p, toc.Tar: tarball.Bytes()} {
		if _, err := lazy.NewLayers(derived).Open(t.Context(), request(p, &source{p: p})); err != nil {
			t.Fatal(err)
		}
		gone := request(p, &source{p, errors.New("the layer is read"), nil})
		gone.Source = unreadable{gone.Source}
		l, err := lazy.NewLayers(derived).Open(t.Context(), gone)
		if err != nil || l.Format != format || l.Len() < 2 {
			t.Errorf("%s: %+v, %v", format, l, err)
		}
		other := gone
		other.Host = "other.test"
		if _, err := lazy.NewLayers(derived).Open(t.Context(), other); err == nil {
			t.Errorf("%s: what one host has sent is taken for another's", format)
		}
	}
}

// unreadable is a source of which no part can be read.
type unreadable struct{ lazy.Source }

func (unreadable) ReaderAt(context.Context) io.ReaderAt {
	return readerAt(func([]byte, int64) (int, error) { return 0, errors.New("the layer is asked for") })
}
