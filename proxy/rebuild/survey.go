package rebuild

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/gzip"
	"github.com/granary-oci/granary/toc/tarball"
)

// contents is the tar of a layer: which chunks it has, and how they are read.
type contents struct {
	chunks *cdc.Map
	packed []byte // the map, as it is sent
	access
}

// access is how the tar of a layer is read here and there.
type access interface {
	// before returns the last byte of the tar, up to one at a place, from which on it can be read.
	before(at int64) int64
	// open returns the tar from such a byte, or one behind it, to another.
	open(layer Layer, at, end int64) (io.ReadCloser, error)
	// takes returns about how many bytes of memory it takes.
	takes() int64
}

// survey makes the map of a layer's tar, and what that is read by, in one pass. The error wraps [toc.ErrUnsupported] when it is none
// that could be read here and there, or [toc.ErrLimit] when it unpacks to too much.
func survey(ctx context.Context, layer Layer) (*contents, error) {
	c, err := surveyAs(ctx, layer)
	if err != nil {
		return nil, err
	}
	c.packed, err = c.chunks.Pack()
	return c, err
}

func surveyAs(ctx context.Context, layer Layer) (*contents, error) {
	var head [512]byte
	if _, err := layer.ReadAt(head[:], 0); err != nil {
		return nil, err
	}
	all, most := io.NewSectionReader(layer, 0, layer.Size), maxRatio*layer.Size
	switch {
	case head[0] == 0x1f && head[1] == 0x8b:
		return surveyGzip(ctx, all, most)
	case string(head[257:262]) == "ustar":
		chunks, err := cdc.Of(ctx, all)
		return &contents{chunks: chunks, access: plainTar{}}, err
	}
	return surveyZstd(ctx, all, most)
}

func surveyGzip(ctx context.Context, all io.Reader, most int64) (*contents, error) {
	var chunks *cdc.Map
	x, err := gzip.Build(all, func(tar io.Reader) (table *toc.TOC, err error) {
		out, in := io.Pipe()
		var cutting sync.WaitGroup
		defer cutting.Wait()
		var cut error
		cutting.Go(func() {
			chunks, cut = cdc.Of(ctx, out)
			out.CloseWithError(cut)
		})
		table, err = tarball.Scan(io.TeeReader(&bounded{tar, most}, in))
		in.CloseWithError(err)
		if cutting.Wait(); err == nil {
			err = cut
		}
		return table, err
	})
	return &contents{chunks: chunks, access: gzipTar{Index: x}}, err
}

func surveyZstd(ctx context.Context, all io.Reader, most int64) (*contents, error) {
	tar, err := tarball.NewFrames(all)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	chunks, err := cdc.Of(ctx, &bounded{tar, most})
	return &contents{chunks: chunks, access: zstdTar(tar.All)}, err
}

// bounded is a reader that fails when there is more to be read.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: it unpacks to too much", toc.ErrLimit)
	}
	return n, err
}

// plainTar is a layer that is its tar.
type plainTar struct{}

func (plainTar) before(at int64) int64 { return at }
func (plainTar) takes() int64          { return 0 }

func (plainTar) open(layer Layer, at, end int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(layer, at, end-at)), nil
}

// gzipTar is one in gzip, of any kind, by its index, of which it needs no table.
type gzipTar struct {
	*gzip.Index
	spans *gzip.Spans // that what is near is read from, nil for none
}

func (x gzipTar) before(at int64) int64 { return x.Before(at).Out }

func (x gzipTar) open(layer Layer, at, end int64) (io.ReadCloser, error) {
	opened, err := gzip.Open(layer, ocispec.Descriptor{Size: x.Size}, x.Index, x.spans)
	if err != nil {
		return nil, err
	}
	return opened.Inflate(toc.Extent{Inner: at, Size: end - at}, 0)
}

func (x gzipTar) takes() (n int64) {
	n = 100 * int64(len(x.Points))
	for _, p := range x.Points {
		n += int64(len(p.Window))
	}
	return n
}

// zstdTar is one in many frames of zstd.
type zstdTar []tarball.Frame

func (z zstdTar) before(at int64) int64 { return tarball.FrameBefore(z, at).Out }
func (z zstdTar) takes() int64          { return 16 * int64(len(z)) }

func (z zstdTar) open(layer Layer, at, end int64) (io.ReadCloser, error) {
	from := tarball.FrameBefore(z, at)
	tar, err := tarball.OpenFrame(layer, layer.Size, from)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, tar, at-from.Out); err != nil {
		tar.Close()
		return nil, err
	}
	return tar, nil
}

// What is kept of contents begins with one of these, which says what the layer is: a tar, one in gzip, whose index is
// elsewhere, or one in frames of zstd, of which there are so many, and where each begins after the one before, in
// the layer and in the tar, all as varints; or why contents are not to be had. The map follows, as it is sent.
const (
	isTar        = 't'
	isGzip       = 'g'
	isZstd       = 'z'
	isUnreadable = '-'
)

// append appends what is kept of contents to p.
func (c *contents) append(p []byte) []byte {
	switch x := c.access.(type) {
	case plainTar:
		p = append(p, isTar)
	case gzipTar:
		p = append(p, isGzip)
	case zstdTar:
		p = binary.AppendUvarint(append(p, isZstd), uint64(len(x)))
		var last tarball.Frame
		for _, f := range x {
			p = binary.AppendUvarint(binary.AppendUvarint(p, uint64(f.In-last.In)), uint64(f.Out-last.Out))
			last = f
		}
	}
	return append(p, c.packed...)
}

// readContents is the inverse of append. index is called for the index of a layer in gzip.
func readContents(p []byte, index func() ([]byte, error)) (*contents, error) {
	if len(p) == 0 {
		return nil, toc.ErrFormat
	}
	kind, p := p[0], p[1:]
	c := new(contents)
	var err error
	switch kind {
	case isTar:
		c.access = plainTar{}
	case isGzip:
		c.access, err = readIndex(index)
	case isZstd:
		c.access, p, err = readFrames(p)
	default:
		err = toc.ErrFormat
	}
	if err != nil {
		return nil, err
	}
	c.packed = p
	c.chunks, err = cdc.Unpack(p)
	if x, ok := c.access.(gzipTar); ok && err == nil && x.TarSize != c.chunks.Size() {
		err = toc.ErrMalformed
	}
	return c, err
}

func readIndex(index func() ([]byte, error)) (access, error) {
	p, err := index()
	if err != nil {
		return nil, err
	}
	x, err := gzip.Decode(bytes.NewReader(p))
	if err != nil {
		return nil, err
	}
	x.Table = new(toc.TOC) // it would take more memory than the rest
	return gzipTar{Index: x}, nil
}

func readFrames(p []byte) (z zstdTar, rest []byte, err error) {
	next := func() (v int64) {
		u, n := binary.Uvarint(p)
		if n <= 0 || u > 1<<40 {
			err = toc.ErrMalformed
			return 0
		}
		p = p[n:]
		return int64(u)
	}
	var last tarball.Frame
	for n := min(next(), int64(len(p))); n > 0 && err == nil; n-- {
		last = tarball.Frame{In: last.In + next(), Out: last.Out + next()}
		z = append(z, last)
	}
	if len(z) == 0 && err == nil {
		err = toc.ErrMalformed
	}
	return z, p, err
}
