package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/tracker"
)

var (
	blob  = digest.FromString("blob")
	other = digest.FromString("other")
	where = Repository{"registry.example", "org/app", "Bearer secret", true, true, "request", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "1.1 granary-a"}
)

// kinds are one of each message, with every field set, and how it is read.
var kinds = map[string]struct {
	message interface{ Header() []byte }
	read    func([]byte) (any, error)
}{
	"get":         {Get{where, ToOwnerAgain, blob, 9 << 20, 3, 2, []digest.Digest{blob, other}, "12D3KooW", 9}, as(ReadGet)},
	"data":        {Data{7, true, Claim{other, "before", "after", "12D3KooW", []byte("signature"), "hub"}}, as(ReadData)},
	"progress":    {Progress{1 << 40}, as(ReadProgress)},
	"busy":        {Busy{[]tracker.ID{"a", "b"}}, as(ReadBusy)},
	"unavailable": {Unavailable{CauseUnreachable, "no route to host"}, as(ReadUnavailable)},
	"map request": {MapRequest{"registry.example", blob}, as(ReadMapRequest)},
	"map":         {Map{9 << 20, true, []byte{0xff, 1}, []tracker.ID{"a"}}, as(ReadMap)},
	"ask":         {Ask{where, Digests, "v1"}, as(ReadAsk)},
	"answer":      {Answer{"application/json", blob, 12, []string{"old"}, 3 * time.Second, time.Minute}, as(ReadAnswer)},
	"learn":       {Learn{where}, as(ReadLearn)},
	"forget":      {Forget{"registry.example", "org/app", "v1"}, as(ReadForget)},
	"order":       {Order{"preheat"}, as(ReadOrder)},
}

func as[T any](read func([]byte) (T, error)) func([]byte) (any, error) {
	return func(p []byte) (any, error) { return read(p) }
}

func TestMessagesAreReadAsTheyWereWritten(t *testing.T) {
	for name, k := range kinds {
		header := k.message.Header()
		got, err := k.read(header)
		if err != nil || !reflect.DeepEqual(got, k.message) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, k.message)
		}
		// A later version may add fields.
		var w writer = header
		w.text(99, "unknown")
		w.number(100, 7)
		if got, err := k.read(w); err != nil || !reflect.DeepEqual(got, k.message) {
			t.Errorf("%s with unknown fields: %+v, %v", name, got, err)
		}
		for n := range len(header) {
			_, _ = k.read(header[:n]) // an error or less, but no panic
		}
	}
}

func TestHeadersThatBreakALimit(t *testing.T) {
	header := func(f func(w *writer)) []byte {
		var w writer
		f(&w)
		return w
	}
	ids := Map{Total: 1}
	for range MaxProviders + 1 {
		ids.Providers = append(ids.Providers, "x")
	}
	for name, err := range map[string]error{
		"no blob":             second(ReadGet(Get{Total: 1, Count: 1}.Header())),
		"no chunks":           second(ReadGet(Get{Blob: blob, Total: 1}.Header())),
		"a chunk too far":     second(ReadGet(Get{Blob: blob, Total: 2 << 20, First: 1, Count: 2}.Header())),
		"too many chunks":     second(ReadGet(Get{Blob: blob, Total: 1 << 30, Count: MaxCount + 1}.Header())),
		"too large a blob":    second(ReadGet(Get{Blob: blob, Total: chunk.MaxBlobSize + 1, Count: 1}.Header())),
		"digests of others":   second(ReadGet(Get{Blob: blob, Total: 2 << 20, Count: 2, Digests: []digest.Digest{blob}}.Header())),
		"a negative number":   second(ReadProgress(Progress{-1}.Header())),
		"a long name":         second(ReadForget(Forget{Host: strings.Repeat("x", maxName+1)}.Header())),
		"not a digest":        second(ReadMapRequest(MapRequest{Blob: "sha256:beef"}.Header())),
		"no digest":           second(ReadMapRequest(nil)),
		"many providers":      second(ReadMap(ids.Header())),
		"a number for a text": second(ReadForget(header(func(w *writer) { w.number(1, 5) }))),
		"a text for a number": second(ReadProgress(header(func(w *writer) { w.text(1, "5") }))),
		"not a message":       second(ReadProgress([]byte{0xff, 0xff})),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestFramesAreReadAsTheyWereWritten(t *testing.T) {
	var lane bytes.Buffer
	frames := []Frame{
		{Type: TypePing, ID: 1},
		{TypeData, 1<<32 - 1, Data{Index: 1}.Header(), bytes.Repeat([]byte{7}, chunk.Size)},
		{Type(200), 3, []byte("?"), []byte("of a later version")},
	}
	for _, f := range frames {
		head, err := f.Head()
		if err != nil {
			t.Fatal(err)
		}
		lane.Write(head)
		lane.Write(f.Body)
	}
	whole := bytes.Clone(lane.Bytes())
	r := bufio.NewReader(&lane)
	for _, want := range frames {
		if got, err := Read(r); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v %d, %v", got.Type, got.ID, err)
		}
	}
	if _, err := Read(r); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	r = bufio.NewReader(bytes.NewReader(whole[:len(whole)-1]))
	_, _ = Read(r)
	_, _ = Read(r)
	if _, err := Read(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	for _, f := range []Frame{{Header: make([]byte, MaxHeader+1)}, {Body: make([]byte, MaxBody+1)}} {
		if _, err := f.Head(); err != ErrTooLarge {
			t.Errorf("too large: %v", err)
		}
	}
	for _, head := range []string{"\x10\x00\x00\x00\x01\xff\xff\xff\x00\x00\x00\x00", "\x10\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff"} {
		if _, err := Read(bufio.NewReader(strings.NewReader(head))); err != ErrTooLarge {
			t.Errorf("announced too large: %v", err)
		}
	}
}

func TestPrefaces(t *testing.T) {
	for p, want := range map[string]int{string(Preface[:]): Version, "grnry\x09": Version, "grnry\x00": 0, "HTTP/1.1": 0, "gr": 0} {
		if v, err := ReadPreface(strings.NewReader(p)); v != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", p, v, err)
		}
	}
}

// TestAClaimSignsAllThatItSays: no two claims sign the same bytes.
func TestAClaimSignsAllThatItSays(t *testing.T) {
	ref := chunk.Ref{Blob: blob, Total: 3 << 20, Offset: 1 << 20, Size: 1 << 20}
	c := Claim{Digest: other, Signer: "a"}
	texts := map[string]bool{string(c.Text(ref)): true}
	for _, r := range []chunk.Ref{{Blob: other, Total: ref.Total, Offset: ref.Offset, Size: ref.Size}, {Blob: blob, Total: 4 << 20, Offset: ref.Offset, Size: ref.Size}, {Blob: blob, Total: ref.Total, Size: ref.Size}} {
		texts[string(c.Text(r))] = true
	}
	texts[string(Claim{Digest: blob, Signer: "a"}.Text(ref))] = true
	texts[string(Claim{Digest: other, Signer: "b"}.Text(ref))] = true
	if len(texts) != 6 {
		t.Errorf("%d different texts of 6", len(texts))
	}
}

func TestPartsOfMaps(t *testing.T) {
	p := PartOfMap(blob, 100<<20+1, 37, MaxCount)
	if got, err := ReadPart(p.Reference()); err != nil || got != p {
		t.Errorf("%+v, %v; want %+v", got, err, p)
	}
	if first, n, err := p.Chunks(); first != 37 || n != MaxCount || err != nil {
		t.Errorf("%d chunks from %d, %v", n, first, err)
	}
	for name, spoil := range map[string]func(*Part){
		"of nothing":                func(p *Part) { p.Total = 0 },
		"of less than nothing":      func(p *Part) { p.Total = -1 },
		"of too large a blob":       func(p *Part) { p.Total = chunk.MaxBlobSize + 1 },
		"of chunks beyond the blob": func(p *Part) { p.Total = 100 << 20 },
		"from within a digest":      func(p *Part) { p.Offset++ },
		"to within a digest":        func(p *Part) { p.Size-- },
		"of too many chunks":        func(p *Part) { p.Offset, p.Size = 0, p.Size+chunk.DigestSize },
		"far away":                  func(p *Part) { p.Offset = 1 << 62 },
	} {
		p := p
		spoil(&p)
		if first, n, err := p.Chunks(); err == nil {
			t.Errorf("%s: %d chunks from %d", name, n, first)
		}
	}
}

func FuzzParts(f *testing.F) {
	f.Add(PartOfMap(blob, 9<<20, 3, 2).Reference())
	f.Add(Part{Layer: blob, Manifest: other, Kind: "toc", Offset: 1, Size: MaxPart}.Reference())
	f.Add(Part{Layer: blob, Path: "bin/sh", Size: 1}.Reference())
	f.Fuzz(func(t *testing.T, reference string) {
		p, err := ReadPart(reference)
		if err != nil {
			return
		}
		if first, n, err := p.Chunks(); err == nil && (first < 0 || n < 1 || n > MaxCount || first+n > chunk.Count(p.Total)) {
			t.Errorf("%d chunks from %d of a blob of %d bytes", n, first, p.Total)
		}
	})
}

func TestAgain(t *testing.T) {
	a := Again{Layer: blob, Size: 5 << 20, Old: []Sized{{other, 4 << 20}, {blob, 1}}}
	if got, err := ReadAgain(a.Reference()); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, spoil := range map[string]func(*Again){
		"of no blob":               func(a *Again) { a.Layer = "sha256:12" },
		"of nothing":               func(a *Again) { a.Size = 0 },
		"of too large a blob":      func(a *Again) { a.Size = chunk.MaxBlobSize + 1 },
		"of no older blob":         func(a *Again) { a.Old[1].Digest = "" },
		"of an older one, no size": func(a *Again) { a.Old[1].Size = -1 },
		"of too many":              func(a *Again) { a.Old = make([]Sized, MaxOlder+1) },
	} {
		bad := Again{Layer: a.Layer, Size: a.Size, Old: slices.Clone(a.Old)}
		spoil(&bad)
		if got, err := ReadAgain(bad.Reference()); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzAgain(f *testing.F) {
	f.Add(Again{Layer: blob, Size: 5 << 20, Old: []Sized{{other, 4 << 20}}}.Reference())
	f.Fuzz(func(t *testing.T, reference string) {
		a, err := ReadAgain(reference)
		if err != nil {
			return
		}
		if got, err := ReadAgain(a.Reference()); err != nil || len(a.Old) > MaxOlder || got.Layer != a.Layer || len(got.Old) != len(a.Old) {
			t.Errorf("%+v, then %+v, %v", a, got, err)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	for _, k := range kinds {
		f.Add(k.message.Header())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for name, k := range kinds {
			m, err := k.read(p)
			if err != nil {
				continue
			}
			header := m.(interface{ Header() []byte }).Header()
			again, err := k.read(header)
			if err != nil || !bytes.Equal(again.(interface{ Header() []byte }).Header(), header) {
				t.Errorf("%s: %+v, then %+v, %v", name, m, again, err)
			}
		}
	})
}

func FuzzFrames(f *testing.F) {
	head, _ := Frame{TypeGet, 1, Get{Blob: blob, Total: 1, Count: 1}.Header(), nil}.Head()
	f.Add(head)
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bufio.NewReader(bytes.NewReader(p))
		for {
			frame, err := Read(r)
			if err != nil {
				return
			}
			if _, err := frame.Head(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
