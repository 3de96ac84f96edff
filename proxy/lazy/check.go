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

// Check compares the tables by which a layer has been opened, and that it carries, with
// the layer, now that all of it is there. From then on a table that disagrees is not
// used: the layer is read as the tar that those see who unpack it. The error wraps
// [toc.ErrDisagrees] if one does.
func (l *Layers) Check(ctx context.Context, blob digest.Digest, src Source) error {
	var errs []error
	for _, layer := range l.opened(blob) {
		errs = append(errs, l.check(ctx, blob, layer, src))
	}
	return errors.Join(errs...)
}

// check is Check for one table, once.
func (l *Layers) check(ctx context.Context, blob digest.Digest, layer *Layer, src Source) error {
	if _, err := l.derived.Get(ctx, kindCheck, layer.table); err == nil {
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
		l.derived.Put(ctx, kindCheck, layer.table, []byte(agrees))
		return nil
	case errors.Is(err, toc.ErrDisagrees), errors.Is(err, toc.ErrMalformed), errors.Is(err, toc.ErrLimit):
		l.derived.Put(ctx, kindCheck, layer.table, []byte(err.Error()))
		l.forget(blob)
	}
	return fmt.Errorf("layer %s: %w", blob, err)
}

// opened returns how a blob has been opened by tables that it carries.
func (l *Layers) opened(blob digest.Digest) (all []*Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.open {
		if r.blob == blob && listed(r.layer.Format) {
			all = append(all, r.layer)
		}
	}
	return all
}

func scanGzip(r io.Reader) (*toc.TOC, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", toc.ErrMalformed, err)
	}
	defer z.Close()
	return tarball.Scan(z)
}
