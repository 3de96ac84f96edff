package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/gzip"
	"github.com/granary-oci/granary/toc/recipe"
	"github.com/granary-oci/granary/toc/tarball"
)

const (
	// Least is the size in bytes of the smallest layer that there are offers of: less is fetched
	// sooner than it is talked about.
	Least = 1 << 20
	// maxRatio is how many times its size a layer may unpack to. What packs better than that is soon
	// fetched, and was perhaps made to keep somebody busy.
	maxRatio = 64
)

// makeOffer makes an offer of a layer, and the index that its contents are read by. how is its recipe, if that
// is known. It takes a CPU second for 10 to 30 MB of what the layer unpacks to, most of it to find the recipe.
func makeOffer(ctx context.Context, layer io.ReaderAt, size int64, how *recipe.Recipe) (m *made, err error) {
	most := maxRatio * size
	if how == nil { // which comes first because it fails soon, mostly, if it does
		if how, err = recipe.FindWithin(ctx, layer, size, most); err != nil {
			return nil, err
		}
	}
	m = new(made)
	if m.index, m.chunks, err = survey(ctx, layer, size, most); err != nil {
		return nil, err
	}
	m.offer, err = EncodeOffer(how, m.chunks)
	return m, err
}

// survey makes the index of a layer and the map of its tar, which has no more than most bytes, in one pass.
func survey(ctx context.Context, layer io.ReaderAt, size, most int64) (x *gzip.Index, chunks *cdc.Map, err error) {
	x, err = gzip.Build(io.NewSectionReader(layer, 0, size), func(tar io.Reader) (table *toc.TOC, err error) {
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
	return x, chunks, err
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

// never are the errors that say of a layer that there will never be an offer.
var never = []error{recipe.ErrNone, toc.ErrFormat, toc.ErrMalformed, toc.ErrLimit, toc.ErrUnsupported, io.ErrUnexpectedEOF}

const maxReason = 1 << 10 // bytes

// noneBecause returns why there is no offer of a layer, if err says that there will never be one.
func noneBecause(err error) (reason string, ok bool) {
	for _, e := range never {
		if errors.Is(err, e) {
			reason = err.Error()
			return reason[:min(len(reason), maxReason)], true
		}
	}
	return "", false
}
