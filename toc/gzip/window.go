package gzip

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

// found is the window of a point that was found, and what it takes to make it sparse.
type found struct {
	window []byte // as it is; nil for none
	behind []byte // of the blob, from the point on
	bits   uint8  // of the first byte behind, that are not
}

// packAll packs the windows of points as they are found.
func packAll(all <-chan found) (packed [][]byte) {
	t := newTracer()
	for f := range all {
		var p []byte
		if f.window != nil {
			p = pack(t.sparse(f))
		}
		packed = append(packed, p)
	}
	return packed
}

var packer = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(maxWindow), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
})

var unpacker = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxWindow))
})

// pack compresses a window.
func pack(window []byte) []byte {
	z, err := packer()
	if err != nil {
		panic(err) // the options are constants
	}
	return z.EncodeAll(window, nil)
}

// unpack is the inverse of pack, of up to maxWindow bytes. Nothing gives nothing.
func unpack(packed []byte) ([]byte, error) {
	z, err := unpacker()
	if err != nil {
		panic(err) // the options are constants
	}
	window, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("gzip index: %w: a window: %w", toc.ErrMalformed, err)
	}
	return window, nil
}
