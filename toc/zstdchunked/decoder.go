package zstdchunked

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

// maxWindow bounds what a decoder keeps of what it has decoded. RFC 8878 asks encoders
// for no more than 8 MiB; those of layers make it that.
const maxWindow = 32 << 20

// decoder decodes frames in the caller's goroutine, and tells which are too large for it.
type decoder struct{ *zstd.Decoder }

// decoders are those that are not in use.
var decoders = sync.Pool{New: func() any {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		panic(err) // of its options, which are constant
	}
	return &decoder{z}
}}

// free gives the decoder back, which so lets go of what it has read from.
func (d *decoder) free() {
	if d.Reset(nil) == nil {
		decoders.Put(d)
	}
}

// Read implements [io.Reader].
func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.Decoder.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = fmt.Errorf("%w: %w", toc.ErrLimit, err)
	}
	return n, err
}
