package recipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/granary-oci/granary/toc"
)

var (
	errRead  = errors.New("the disk is gone")
	errWrite = errors.New("the client is gone")
)

// failing is a blob of which nothing behind a place can be read.
type failing struct {
	io.ReaderAt
	from int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errRead
	}
	return f.ReaderAt.ReadAt(p, off)
}

// joined is members of several encoders one after the other.
func joined(blobs ...[]byte) []byte { return bytes.Join(blobs, nil) }

// TestNone says why a layer has no recipe, or what is wrong with it.
func TestNone(t *testing.T) {
	long := goLevel(6, 6).pack(t, sample(sampleSize+100_000))
	short := goLevel(6, 6).pack(t, sample(100_000))
	damaged := bytes.Clone(short)
	damaged[len(damaged)-5] ^= 1 // its CRC-32
	for _, c := range []struct {
		name string
		blob []byte
		want error
		says string
	}{
		{"empty", nil, toc.ErrFormat, ""},
		{"tar", make([]byte, 1024), toc.ErrFormat, ""},
		{"cut header", long[:5], toc.ErrFormat, ""},
		{"cut", long[:len(long)/2], io.ErrUnexpectedEOF, ""},
		{"cut trailer", short[:len(short)-3], io.ErrUnexpectedEOF, ""},
		{"damaged", damaged, toc.ErrMalformed, ""},
		{"other level later", joined(long, goLevel(3, 3).pack(t, sample(100_000))), ErrNone, "Go's compress/flate at level 6 makes differs from byte"},
		{"much behind", joined(short, make([]byte, 65<<10)), ErrNone, "bytes follow its last member"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := find(c.blob); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v that says %q", err, c.want, c.says)
			}
		})
	}
}

// TestManyMembers stops at members that would be too many, or have too much in their headers.
func TestManyMembers(t *testing.T) {
	begin := func(size int) (n int, err error) {
		for s := new(search); err == nil; n++ {
			header := make([]byte, size)
			header[0] = byte(n) // as no two of them are alike
			if size == minHeader {
				header[0] = 0
			}
			err = s.begin(header)
		}
		return n, err
	}
	if n, err := begin(minHeader); !errors.Is(err, ErrNone) || n != maxMembers+1 {
		t.Errorf("%d members, then %v", n, err)
	}
	if n, err := begin(maxHeader); !errors.Is(err, ErrNone) || n != MaxSize/maxHeader+1 {
		t.Errorf("%d members with large headers, then %v", n, err)
	}
}

// TestUnreadable tells what cannot be read from what has no recipe, wherever that is.
func TestUnreadable(t *testing.T) {
	blob := goLevel(6, 6).pack(t, sample(sampleSize+500_000))
	for _, from := range []int64{0, 10, piece, int64(len(blob)) / 2, int64(len(blob)) - 8} {
		_, err := Find(t.Context(), failing{bytes.NewReader(blob), from}, int64(len(blob)))
		if !errors.Is(err, errRead) || errors.Is(err, ErrNone) || errors.Is(err, toc.ErrMalformed) {
			t.Errorf("from byte %d on: %v", from, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, bytes.NewReader(blob), int64(len(blob))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestTail keeps what follows the last member, and what headers say.
func TestTail(t *testing.T) {
	content := sample(100_000)
	named := goLevel(6, 6).pack(t, content)
	named = joined(named[:3], []byte{0x0c}, named[4:10], []byte{3, 0, 'a', 'b', 'c'}, []byte("layer.tar\x00"), named[10:])
	for name, blob := range map[string][]byte{
		"zeros":   joined(named, make([]byte, 512)),
		"no gzip": joined(named, []byte("signed by hand")),
		"a start": joined(named, named[:12]),
		"members": joined(named, goLevel(6, 6).pack(t, nil), named),
	} {
		t.Run(name, func(t *testing.T) {
			tar := content
			if name == "members" {
				tar = joined(content, content)
			}
			checkRebuilt(t, found(t, blob), tar, blob)
		})
	}
}

// unread fails the test when it is read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the tar was read")
	return 0, io.EOF
}

// changed is a recipe that lies.
func changed(r *Recipe, change func(r *Recipe)) *Recipe {
	lie := *r
	lie.Members = append([]Member(nil), r.Members...)
	change(&lie)
	return &lie
}

// TestLies holds Rebuild to refuse what cannot be before it reads anything.
func TestLies(t *testing.T) {
	r := found(t, pgzipLevel(-1, 5).pack(t, sample(100_000)))
	for name, change := range map[string]func(r *Recipe){
		"a bomb":          func(r *Recipe) { r.Members[0].Size = 1 << 39 },
		"too large a tar": func(r *Recipe) { r.Members[0].Size = 1 << 62 },
		"negative":        func(r *Recipe) { r.Members[0].Size = -1 },
		"sums overflow":   func(r *Recipe) { r.Members = append(r.Members, Member{r.Members[0].Header, maxTar, false}) },
		"too large":       func(r *Recipe) { r.Size = 1 << 30 },
		"too small":       func(r *Recipe) { r.Size = 20 },
		"no members":      func(r *Recipe) { r.Members = nil },
		"no header":       func(r *Recipe) { r.Members[0].Header = nil },
		"other header":    func(r *Recipe) { r.Members[0].Header = []byte("0123456789") },
		"long header":     func(r *Recipe) { r.Members[0].Header = append(r.Members[0].Header, make([]byte, maxHeader)...) },
		"long tail":       func(r *Recipe) { r.Tail = make([]byte, maxTail+1) },
		"no digest":       func(r *Recipe) { r.Blob = toc.Digest{} },
		"family":          func(r *Recipe) { r.Encoder.Family = 99 },
		"level":           func(r *Recipe) { r.Encoder.Level = 10 },
		"default level":   func(r *Recipe) { r.Encoder.Level = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			lie := changed(r, change)
			var b bytes.Buffer
			err := lie.Rebuild(t.Context(), &b, unread{t})
			if !errors.Is(err, toc.ErrMalformed) && !errors.Is(err, toc.ErrLimit) || b.Len() > 0 {
				t.Errorf("%d bytes, and %v", b.Len(), err)
			}
			if stored, err := lie.Encode(); err == nil {
				if _, err := Decode(stored); err == nil {
					t.Error("it was decoded")
				}
			}
		})
	}
}

// endless is a tar that only stops when it is asked for more than it may be.
type endless struct {
	t    *testing.T
	left int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left -= int64(len(p)); e.left < 0 {
		e.t.Error("too much of the tar was read")
		return 0, io.EOF
	}
	return len(p), nil
}

// TestOtherTar holds Rebuild to end with an error, and with no more bytes than the blob has, when the tar
// is not the recipe's.
func TestOtherTar(t *testing.T) {
	content := sample(blockSize + 300_000)
	blob := pgzipLevel(-1, 5).pack(t, content)
	r := found(t, blob)
	size := int64(len(content))
	for _, c := range []struct {
		name string
		tar  io.Reader
		want error
	}{
		{"empty", bytes.NewReader(nil), io.ErrUnexpectedEOF},
		{"short", bytes.NewReader(content[:size-1]), io.ErrUnexpectedEOF},
		{"long", io.MultiReader(bytes.NewReader(content), strings.NewReader("x")), toc.ErrMalformed},
		{"packs less", bytes.NewReader(noise(int(size), 1)), toc.ErrMalformed},
		{"packs more, and goes on", &endless{t, size + 2*piece}, toc.ErrMalformed},
		{"unreadable", io.MultiReader(bytes.NewReader(content[:blockSize]), iotest.ErrReader(errRead)), errRead},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := r.Rebuild(t.Context(), &b, c.tar); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if int64(b.Len()) > r.Size {
				t.Errorf("%d bytes were written for a blob of %d", b.Len(), r.Size)
			}
		})
	}
	if err := r.Rebuild(t.Context(), brokenPipe{}, bytes.NewReader(content)); !errors.Is(err, errWrite) {
		t.Errorf("nowhere to write: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Rebuild(ctx, io.Discard, unread{t}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errWrite }
