package toc_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/granary-oci/granary/toc"
)

const sumA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
const sumB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

func digestOf(s string) toc.Digest {
	d, err := toc.ParseDigest(s)
	if err != nil {
		panic(err)
	}
	return d
}

// build makes a table of entries.
func build(t testing.TB, entries ...toc.Entry) *toc.TOC {
	t.Helper()
	var b toc.Builder
	for _, e := range entries {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Done()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func encode(t testing.TB, table *toc.TOC) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := toc.EncodeJSON(&b, table); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// document is a table as JSON.
func document(entries ...string) string {
	return `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
}

func wantEqual(t testing.TB, got, want *toc.TOC) {
	t.Helper()
	if got.Len() != want.Len() {
		t.Fatalf("%d entries, want %d", got.Len(), want.Len())
	}
	for i := range want.Len() {
		if g, w := got.At(i), want.At(i); !reflect.DeepEqual(g, w) {
			t.Errorf("entry %d:\n got %+v\nwant %+v", i, g, w)
		}
	}
}

func TestJSONRoundTrip(t *testing.T) {
	a, b := digestOf(sumA), digestOf(sumB)
	at := time.Unix(1700000000, 123456789)
	for name, entries := range map[string][]toc.Entry{
		"nothing": nil,
		"types": {
			{Name: "etc", Type: toc.Directory, Mode: 0o1777, UID: 1, GID: 1<<32 - 1, ModTime: at},
			{Name: "etc/link", Type: toc.Symlink, Link: "../a b", ModTime: at},
			{Name: "etc/hard", Type: toc.Hardlink, Link: "etc/link", ModTime: at},
			{Name: "dev/tty", Type: toc.CharDevice, Major: 5, Minor: 1<<32 - 1, ModTime: at},
			{Name: "dev/sda", Type: toc.BlockDevice, Major: 8, ModTime: at},
			{Name: "fifo", Type: toc.FIFO, ModTime: at},
			{Name: "empty", Type: toc.Regular, Mode: 0o4755, ModTime: at},
		},
		"times": {
			{Name: "zero", Type: toc.Directory, Mode: 0o700},
			{Name: "1970", Type: toc.Regular, ModTime: time.Unix(0, 0)},
			{Name: "before", Type: toc.Regular, ModTime: time.Unix(-1, 1)},
			{Name: "far", Type: toc.Regular, ModTime: time.Unix(1<<50, 5)},
			{Name: "long ago", Type: toc.Regular, ModTime: time.Unix(-1<<63, 999999999)},
			{Name: "never", Type: toc.Regular, ModTime: time.Unix(1<<63-1, 0)},
		},
		"names": {
			{Name: "\xff\xfe", Type: toc.Symlink, Link: "\x80\"\\\n\x7f", ModTime: at},
			{Name: "\xed\xb2\x80 ��", Type: toc.Regular, ModTime: at, Xattrs: map[string]string{"user.\xc3": "\x00\xff", "user.a": ""}},
			{Name: "ä/日本/🙂", Type: toc.Regular, ModTime: at},
			{Name: ".prefetch.landmark", Type: toc.Regular, ModTime: at},
		},
		"content": {
			{Name: "one", Type: toc.Regular, Size: 5, ModTime: at, Digest: a, Extents: []toc.Extent{{Size: 5, Start: 10, End: 20, Digest: a}}},
			{Name: "unknown", Type: toc.Regular, Size: 5, ModTime: at, Extents: []toc.Extent{{Size: 5, Start: 0, End: 0, Inner: 512}}},
			{Name: "behind", Type: toc.Regular, Size: 5, ModTime: at, Extents: []toc.Extent{{Size: 5, Start: 3, End: 1000, Inner: 1}}},
			{Name: "several", Type: toc.Regular, Size: 9, ModTime: at, Digest: b, Extents: []toc.Extent{
				{Size: 5, Start: 10, End: 900, Digest: a}, {Offset: 5, Size: 4, Start: 15, End: 30, Inner: 7},
			}},
			{Name: "holes", Type: toc.Regular, Size: 100, ModTime: at, Extents: []toc.Extent{
				{Offset: 10, Size: 5, Start: 10, End: 20, Digest: a}, {Offset: 20, Size: 5, Start: 15, End: 20}, {Offset: 25, Size: 5, Start: 40, End: 41},
			}},
			{Name: "hole behind", Type: toc.Regular, Size: 100, ModTime: at, Digest: b, Extents: []toc.Extent{{Size: 5, Start: 10, End: 20}}},
			{Name: "hole before", Type: toc.Regular, Size: 100, ModTime: at, Digest: b, Extents: []toc.Extent{{Offset: 95, Size: 5, Start: 10, End: 20}}},
			{Name: "nothing but a hole", Type: toc.Regular, Size: toc.MaxFileSize, ModTime: at},
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := build(t, entries...)
			text := encode(t, want)
			if !json.Valid(text) {
				t.Fatalf("not JSON: %s", text)
			}
			got, err := toc.DecodeJSON(iotest.OneByteReader(bytes.NewReader(text)), 1000)
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			wantEqual(t, got, want)
			if again := encode(t, got); !bytes.Equal(again, text) {
				t.Errorf("the second time it is\n%s, not\n%s", again, text)
			}
		})
	}
}

func TestDecodeJSON(t *testing.T) {
	a, b := digestOf(sumA), digestOf(sumB)
	const reg = `{"name":"f","type":"reg","size":10,"offset":100`
	for _, test := range []struct {
		name    string
		entries []string
		want    []toc.Extent
		digest  toc.Digest
	}{
		{"whole, up to the layer's end", []string{reg + `}`},
			[]toc.Extent{{Size: 10, Start: 100, End: 1000}}, toc.Digest{}},
		{"the file's digest", []string{reg + `,"digest":"` + sumA + `"}`},
			[]toc.Extent{{Size: 10, Start: 100, End: 1000, Digest: a}}, a},
		{"the chunk's digest", []string{reg + `,"chunkDigest":"` + sumA + `"}`},
			[]toc.Extent{{Size: 10, Start: 100, End: 1000, Digest: a}}, a},
		{"up to what is next in the layer", []string{`{"name":"z","type":"reg","size":1,"offset":700}`, reg + `}`, `{"name":"g","type":"reg","size":1,"offset":300}`},
			[]toc.Extent{{Size: 10, Start: 100, End: 300}}, toc.Digest{}},
		{"in a member with others", []string{`{"name":"e","type":"reg","size":1,"offset":100}`, reg + `,"innerOffset":512}`, `{"name":"g","type":"reg","size":1,"offset":300}`},
			[]toc.Extent{{Size: 10, Start: 100, End: 300, Inner: 512}}, toc.Digest{}},
		{"chunks", []string{reg + `,"chunkSize":6,"digest":"` + sumA + `","chunkDigest":"` + sumB + `"}`, `{"name":"f","type":"chunk","offset":200,"chunkOffset":6}`},
			[]toc.Extent{{Size: 6, Start: 100, End: 200, Digest: b}, {Offset: 6, Size: 4, Start: 200, End: 1000}}, a},
		{"containers/storage: the end of the last chunk is the file's", []string{
			reg + `,"chunkSize":4,"endOffset":400}`, `{"type":"chunk","name":"./f","chunkSize":3,"chunkOffset":4,"offset":200}`, `{"type":"chunk","name":"f","chunkSize":3,"chunkOffset":7,"offset":300}`},
			[]toc.Extent{{Size: 4, Start: 100, End: 200}, {Offset: 4, Size: 3, Start: 200, End: 300}, {Offset: 7, Size: 3, Start: 300, End: 400}}, toc.Digest{}},
		{"zeros", []string{
			reg + `,"chunkSize":4,"endOffset":400,"chunkType":"zeros"}`, `{"type":"chunk","name":"f","chunkSize":3,"chunkOffset":4,"offset":200}`, `{"type":"chunk","name":"f","chunkSize":3,"chunkOffset":7,"chunkType":"zeros","offset":300}`},
			[]toc.Extent{{Offset: 4, Size: 3, Start: 200, End: 400}}, toc.Digest{}},
		{"the last of a name", []string{`{"name":"f","type":"reg","size":3,"offset":50}`, `{"name":"/x/../f","type":"reg","size":10,"offset":60}`},
			[]toc.Extent{{Size: 10, Start: 60, End: 1000}}, toc.Digest{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			table, err := toc.DecodeJSON(strings.NewReader(document(test.entries...)), 1000)
			if err != nil {
				t.Fatal(err)
			}
			f, ok := table.Lookup("f")
			if !ok || !slices.Equal(f.Extents, test.want) || f.Digest != test.digest {
				t.Errorf("got %+v, digest %s\nwant %+v, digest %s", f.Extents, f.Digest, test.want, test.digest)
			}
		})
	}
}

func TestDecodeJSONAttributes(t *testing.T) {
	table, err := toc.DecodeJSON(strings.NewReader(` {"tarSplitDigest":"x","more":[{"a":[1.5e3,true,false,null,"\u0041"]}],
		"entries" : [ {"name":"./d/","type":"dir","mode":17407,"modtime":"2020-02-03T04:05:06.789+01:00","uid":7,"gid":8,"userName":"u","groupName":"g",
		"xattrs":{"user.a":"AP8=","user.b":null},"accesstime":"x"}, {"name":"d\/l","type":"symlink","linkName":"\ud83d\ude42\udcff","modtime":""} ] , "version":1 } `), 10)
	if err != nil {
		t.Fatal(err)
	}
	want := build(t, toc.Entry{Name: "d", Type: toc.Directory, Mode: 0o1777, UID: 7, GID: 8, ModTime: time.Date(2020, 2, 3, 3, 5, 6, 789000000, time.UTC),
		Xattrs: map[string]string{"user.a": "\x00\xff", "user.b": ""}},
		toc.Entry{Name: "d/l", Type: toc.Symlink, Link: "🙂\xff", ModTime: time.Unix(0, 0)})
	wantEqual(t, table, want)
}

func TestDecodeStargzLeavesOutWhatIsPrivate(t *testing.T) {
	table, prefetch, err := toc.DecodeStargz(strings.NewReader(document(
		`{"name":"first","type":"reg","size":1,"offset":5}`,
		`{"name":"./.prefetch.landmark","type":"reg","size":1,"offset":77}`,
		`{"name":".no.prefetch.landmark","type":"reg","size":1,"offset":78}`,
		`{"name":"stargz.index.json","type":"reg","size":1,"offset":80}`,
		`{"name":"d/.prefetch.landmark","type":"reg","size":1,"offset":82}`)), 1000)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for e := range table.All() {
		names = append(names, e.Name)
	}
	if want := []string{"", "d", "d/.prefetch.landmark", "first"}; !slices.Equal(names, want) || prefetch != 77 {
		t.Errorf("%q, prefetch %d; want %q, 77", names, prefetch, want)
	}
	if f, _ := table.Lookup("first"); f.Extents[0].End != 77 {
		t.Errorf("it ends at %d", f.Extents[0].End)
	}
}

func TestDecodeJSONRefuses(t *testing.T) {
	file := func(members string) string {
		return document(`{"name":"f","type":"reg","size":10,"offset":100` + members + `}`)
	}
	for name, test := range map[string]struct {
		text string
		want error
	}{
		"nothing":                {"", toc.ErrMalformed},
		"another value":          {"[]", toc.ErrMalformed},
		"null":                   {"null", toc.ErrMalformed},
		"no version":             {`{"entries":[]}`, toc.ErrMalformed},
		"another version":        {`{"version":2,"entries":[]}`, toc.ErrMalformed},
		"no entries":             {`{"version":1}`, toc.ErrMalformed},
		"entries twice":          {`{"version":1,"entries":[],"entries":[]}`, toc.ErrMalformed},
		"half of it":             {document()[:20], toc.ErrMalformed},
		"more behind it":         {document() + "{}", toc.ErrMalformed},
		"a comma too many":       {`{"version":1,"entries":[],}`, toc.ErrMalformed},
		"an entry of another":    {document(`1`), toc.ErrMalformed},
		"an entry that is null":  {document(`null`), toc.ErrMalformed},
		"no type":                {document(`{"name":"f"}`), toc.ErrMalformed},
		"an unknown type":        {document(`{"name":"f","type":"door"}`), toc.ErrMalformed},
		"the root as a file":     {document(`{"name":"..","type":"reg"}`), toc.ErrMalformed},
		"a zero in a name":       {document(`{"name":"a\u0000b","type":"reg"}`), toc.ErrMalformed},
		"half of a character":    {document(`{"name":"\ud83d","type":"reg"}`), toc.ErrMalformed},
		"the other half":         {document(`{"name":"\udc00","type":"reg"}`), toc.ErrMalformed},
		"two first halves":       {document(`{"name":"\ud83d\ud83d","type":"reg"}`), toc.ErrMalformed},
		"an escape":              {document(`{"name":"\x41","type":"reg"}`), toc.ErrMalformed},
		"a line in a string":     {document("{\"name\":\"a\nb\",\"type\":\"reg\"}"), toc.ErrMalformed},
		"a fraction":             {file(`,"uid":1.5`), toc.ErrMalformed},
		"a large number":         {file(`,"uid":9223372036854775808`), toc.ErrMalformed},
		"an owner below 0":       {file(`,"uid":-1`), toc.ErrMalformed},
		"a group of 33 bits":     {file(`,"gid":4294967296`), toc.ErrMalformed},
		"a long number":          {file(`,"uid":` + strings.Repeat("1", 1000)), toc.ErrLimit},
		"a bad time":             {file(`,"modtime":"yesterday"`), toc.ErrMalformed},
		"a bad digest":           {file(`,"digest":"sha256:0"`), toc.ErrMalformed},
		"digests that differ":    {file(`,"digest":"` + sumA + `","chunkDigest":"` + sumB + `"`), toc.ErrMalformed},
		"no base64":              {file(`,"xattrs":{"user.a":"!"}`), toc.ErrMalformed},
		"large attributes":       {file(`,"xattrs":{"user.a":"` + strings.Repeat("AAAA", 20000) + `","user.b":"` + strings.Repeat("AAAA", 20000) + `"}`), toc.ErrLimit},
		"a long string":          {file(`,"x":"` + strings.Repeat("y", 1<<20) + `"`), toc.ErrLimit},
		"a long name":            {document(`{"name":"` + strings.Repeat("y", 5000) + `","type":"reg"}`), toc.ErrLimit},
		"a deep value":           {file(`,"x":` + strings.Repeat("[", 100000)), toc.ErrLimit},
		"a size below 0":         {document(`{"name":"f","type":"reg","size":-1}`), toc.ErrLimit},
		"a size of 8 EiB":        {file(`,"size":9223372036854775807`), toc.ErrLimit},
		"an offset below 0":      {file(`,"offset":-1`), toc.ErrMalformed},
		"an offset outside":      {file(`,"offset":1001`), toc.ErrMalformed},
		"an end outside":         {file(`,"endOffset":1001`), toc.ErrMalformed},
		"an end before":          {file(`,"endOffset":99`), toc.ErrMalformed},
		"an inner below 0":       {file(`,"innerOffset":-1`), toc.ErrMalformed},
		"a chunk below 0":        {file(`,"chunkSize":-1`), toc.ErrMalformed},
		"a chunk too large":      {file(`,"chunkSize":11`), toc.ErrMalformed},
		"a chunk of 8 EiB":       {file(`,"chunkOffset":9223372036854775807,"chunkSize":9223372036854775807`), toc.ErrMalformed},
		"a chunk too few":        {file(`,"chunkSize":4`), toc.ErrMalformed},
		"a gap":                  {document(`{"name":"f","type":"reg","size":10,"offset":100,"chunkSize":4}`, `{"type":"chunk","offset":200,"chunkOffset":5}`), toc.ErrMalformed},
		"chunks that overlap":    {document(`{"name":"f","type":"reg","size":10,"offset":100,"chunkSize":4}`, `{"type":"chunk","offset":200,"chunkOffset":3}`), toc.ErrMalformed},
		"a chunk of no file":     {document(`{"type":"chunk","name":"f","offset":200}`), toc.ErrMalformed},
		"a chunk of another":     {document(`{"name":"f","type":"reg","size":10,"offset":100,"chunkSize":4}`, `{"type":"chunk","name":"g","offset":200,"chunkOffset":4}`), toc.ErrMalformed},
		"a chunk of a directory": {document(`{"name":"f","type":"dir"}`, `{"type":"chunk","name":"f","offset":200}`), toc.ErrMalformed},
		"a file in a file":       {document(`{"name":"f","type":"reg"}`, `{"name":"f/g","type":"reg"}`), toc.ErrMalformed},
		"a link to nowhere":      {document(`{"name":"f","type":"symlink"}`), toc.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := toc.DecodeJSON(strings.NewReader(test.text), 1000)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestDecodeJSONReportsTheReadersError(t *testing.T) {
	broken := errors.New("network is down")
	text := document(`{"name":"f","type":"reg"}`)
	for n := range len(text) + 1 {
		_, err := toc.DecodeJSON(io.MultiReader(strings.NewReader(text[:n]), iotest.ErrReader(broken)), 1000)
		if !errors.Is(err, broken) || errors.Is(err, toc.ErrMalformed) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		_, err = toc.DecodeJSON(strings.NewReader(text[:n]), 1000)
		if n < len(text) && !errors.Is(err, toc.ErrMalformed) {
			t.Fatalf("of %d bytes: %v", n, err)
		}
	}
}

// endless gives one text over and over, up to a number of bytes.
func endless(text string, n int64) io.Reader { return io.LimitReader(&repeater{text: text}, n) }

type repeater struct {
	text string
	at   int
}

func (r *repeater) Read(p []byte) (n int, _ error) {
	for n < len(p) {
		k := copy(p[n:], r.text[r.at:])
		n, r.at = n+k, (r.at+k)%len(r.text)
	}
	return n, nil
}

// slow says that the race detector is watching, and finds nothing new in more of the
// same.
var slow bool

func TestDecodeJSONOfLargeTables(t *testing.T) {
	size, little := int64(200<<20), uint64(1<<20)
	if slow {
		size /= 10
	}
	spaces := strings.Repeat(" ", 4096)
	entry := `{"name":"usr/share/f","type":"reg","mode":420,"modtime":"2020-02-03T04:05:06Z"},`
	for name, test := range map[string]struct {
		r    io.Reader
		want error
		most uint64 // bytes allocated
	}{
		"spaces":            {io.MultiReader(strings.NewReader(`{"version":1,`), endless(spaces, size), strings.NewReader(`"entries":[]}`)), nil, little},
		"spaces behind it":  {io.MultiReader(strings.NewReader(document()), endless(spaces, size)), nil, little},
		"too many spaces":   {io.MultiReader(strings.NewReader(`{"version":1,`), endless(spaces, toc.MaxTOCSize)), toc.ErrLimit, little},
		"unknown members":   {io.MultiReader(strings.NewReader(`{"version":1,`), endless(`"x":[0,{}],`, 11*(size/11)), strings.NewReader(`"entries":[]}`)), nil, little},
		"a member's string": {io.MultiReader(strings.NewReader(`{"x":"`), endless(`x`, size)), toc.ErrLimit, little},
		"names of one file": {io.MultiReader(strings.NewReader(`{"version":1,"entries":[`), endless(entry, int64(len(entry))*(size/int64(len(entry)))), strings.NewReader(`{"name":"a","type":"reg"}]}`)), nil, 2 << 30},
		"too many entries":  {io.MultiReader(strings.NewReader(`{"version":1,"entries":[`), endless(`{"name":"a","type":"reg"},`, toc.MaxTOCSize)), toc.ErrLimit, 2 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			before := allocated()
			_, err := toc.DecodeJSON(test.r, 1000)
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if n := allocated() - before; n > test.most {
				t.Errorf("%d bytes allocated, want %d at most", n, test.most)
			}
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// large makes a table of n files as eStargz has it.
func large(n int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"version":1,"entries":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "\n\t\t{\n\t\t\t\"name\": \"usr/share/package-%d/some/file-%d.txt\",\n\t\t\t\"type\": \"reg\",\n\t\t\t\"size\": 4321,\n\t\t\t\"modtime\": \"2020-02-03T04:05:06Z\",\n\t\t\t\"mode\": 420,\n\t\t\t\"offset\": %d,\n\t\t\t\"digest\": %q,\n\t\t\t\"chunkDigest\": %q\n\t\t}", i/100, i, 1+i*1000, sumA, sumA)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

func BenchmarkDecodeJSON(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		text := large(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				table, err := toc.DecodeJSON(bytes.NewReader(text), 1<<40)
				if err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(table)
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "kept-B/entry")
		})
	}
}

func BenchmarkEncodeJSON(b *testing.B) {
	table, err := toc.DecodeJSON(bytes.NewReader(large(100_000)), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := toc.EncodeJSON(io.Discard, table); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzDecodeJSON(f *testing.F) {
	for _, text := range []string{
		document(), document(`{"name":"d","type":"dir","xattrs":{"user.a":"AA=="}}`),
		document(`{"name":"f","type":"reg","size":10,"offset":100,"chunkSize":4,"endOffset":400}`, `{"type":"chunk","name":"f","chunkOffset":4,"chunkType":"zeros"}`),
		document(`{"name":"\udc80\ud83d\ude42","type":"hardlink","linkName":"d","modtime":"2020-02-03T04:05:06.7Z","modtimeSeconds":-99999999999999}`),
		document(`{"name":"dev","type":"char","devMajor":1,"devMinor":3,"digest":"` + sumA + `"}`),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := toc.DecodeJSON(bytes.NewReader(text), 1000)
		if err != nil {
			if !errors.Is(err, toc.ErrMalformed) && !errors.Is(err, toc.ErrLimit) {
				t.Fatal(err)
			}
			return
		}
		again := encode(t, table)
		if !json.Valid(again) {
			t.Fatalf("not JSON: %s", again)
		}
		got, err := toc.DecodeJSON(bytes.NewReader(again), 1000)
		if err != nil {
			t.Fatalf("%v: %s", err, again)
		}
		wantEqual(t, got, table)
	})
}
