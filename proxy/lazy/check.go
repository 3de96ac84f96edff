package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarball"
)

// Check compares the table that a layer carries with the layer, now that all of it is
// there, if the layer has been opened by that table and this has not been done. From
// then on a table that disagrees is not used: the layer is read as the tar that those
// see who unpack it. The error wraps [toc.ErrDisagrees] if it does.
func (l *Layers) Check(ctx context.Context, blob digest.Digest, src Source) error {
	layer, ok := l.opened(blob)
	if !ok || !listed(layer.Format) {
		return nil
	}
	if _, err := l.derived.Get(ctx, kindCheck, blob); err == nil {
		return nil
	}
	scan := scanGzip
	if layer.Format == toc.ZstdChunked {
		scan = tarball.ScanZstd
	}
	table, err := stream(ctx, src, scan)
	if err == nil {
		err = toc.Compare(layer.on(src.ReaderAt(ctx)).Layer, table)
	}
	switch {
	case err == nil:
		l.derived.Put(ctx, kindCheck, blob, []byte(agrees))
	case errors.Is(err, toc.ErrDisagrees), errors.Is(err, toc.ErrMalformed), errors.Is(err, toc.ErrLimit):
		l.derived.Put(ctx, kindCheck, blob, []byte(err.Error()))
		l.forget(blob)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", blob, err)
	}
	return nil
}

// opened returns a layer that has been opened.
func (l *Layers) opened(blob digest.Digest) (*Layer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.open {
		if r.blob == blob {
			return r.layer, true
		}
	}
	return nil, false
}

func scanGzip(r io.Reader) (*toc.TOC, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", toc.ErrMalformed, err)
	}
	defer z.Close()
	return tarball.Scan(z)
}
