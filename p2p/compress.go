package p2p

import (
	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	minCompressible = 64 << 10
	compressSample  = 16 << 10
	compressGain    = 0.85 // a sample must shrink to less
)

var (
	zstdWriter = newZstdWriter()
	// No chunk is larger, and nobody makes this node take more memory for one.
	zstdReader, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(chunk.Size))
)

// newZstdWriter returns an encoder that has begun: what it makes when it is used for
// the first time must not belong to whoever does.
func newZstdWriter() *zstd.Encoder {
	w, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	w.EncodeAll(nil, nil)
	return w
}

// compress compresses a chunk if a sample of it shrinks. Most layers are compressed
// already.
func compress(p []byte) (body []byte, compressed bool) {
	if len(p) < minCompressible {
		return p, false
	}
	middle := p[len(p)/2:]
	sample := middle[:min(compressSample, len(middle))]
	if float64(len(zstdWriter.EncodeAll(sample, nil))) > compressGain*float64(len(sample)) {
		return p, false
	}
	small := zstdWriter.EncodeAll(p, make([]byte, 0, len(p)/2))
	if len(small) >= len(p) {
		return p, false
	}
	return small, true
}

// decompress returns the chunk of a size that compress has compressed.
func decompress(p []byte, size int64) ([]byte, error) {
	return zstdReader.DecodeAll(p, make([]byte, 0, size))
}
