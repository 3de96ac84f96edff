package tarball

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

const (
	// MaxFrame is how many bytes a frame may inflate to, for the tar to be read here and there: 16 MiB. Those of
	// zstd:chunked have a file or a part of one; what is one single frame has no way in.
	MaxFrame  = 16 << 20
	maxFrames = 1 << 22
)

// Frame is where a zstd frame begins, in a layer and in the tar.
type Frame struct{ In, Out int64 }

// Frames reads the tar of a layer that is many zstd frames (RFC 8878 section 3.1), of which it notes each. The error
// of Read wraps [toc.ErrUnsupported] at a frame of more than [MaxFrame] bytes, [toc.ErrFormat] when there is no
// zstd, else [toc.ErrMalformed] or [toc.ErrLimit], or it is one of the layer's reader. Who uses it closes it.
type Frames struct {
	All []Frame // of those that were read, in order; frames to skip aside

	layer *bufio.Reader
	frame *oneFrame // being read; nil before one
	z     *zstd.Decoder
	in    int64 // of the layer were read
	out   int64 // of the tar
	err   error
}

// NewFrames returns the tar of a layer that passes by.
func NewFrames(layer io.Reader) (*Frames, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return &Frames{layer: bufio.NewReaderSize(layer, window), z: z}, nil
}

// Close ends reading.
func (f *Frames) Close() error {
	f.z.Close()
	return nil
}

// Read implements [io.Reader].
func (f *Frames) Read(p []byte) (int, error) {
	for f.err == nil {
		if f.frame == nil {
			f.err = f.begin()
			continue
		}
		n, err := f.z.Read(p)
		f.out += int64(n)
		switch {
		case f.out-f.All[len(f.All)-1].Out > MaxFrame:
			f.err = fmt.Errorf("%w: a zstd frame of more than %d bytes", toc.ErrUnsupported, MaxFrame)
		case err == io.EOF:
			f.err = f.end()
		case err != nil:
			f.err = f.blame(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, f.err
}

// begin begins the next frame that is not to be skipped. It is io.EOF at the end.
func (f *Frames) begin() error {
	head, err := f.layer.Peek(zstd.HeaderMaxSize)
	if len(head) == 0 {
		if err == io.EOF && f.in == 0 {
			return toc.ErrFormat
		}
		return err
	}
	var h zstd.Header
	if !isFrame(head[:min(4, len(head))]) || h.Decode(head) != nil {
		if f.in == 0 {
			return toc.ErrFormat
		}
		return fmt.Errorf("%w: no zstd frame at byte %d", toc.ErrMalformed, f.in)
	}
	if h.Skippable {
		n, err := io.CopyN(io.Discard, f.layer, 8+int64(h.SkippableSize))
		f.in += n
		return unexpectedEnd(err)
	}
	if len(f.All) == maxFrames {
		return fmt.Errorf("%w: more than %d zstd frames", toc.ErrLimit, maxFrames)
	}
	f.All = append(f.All, Frame{f.in, f.out})
	f.frame = &oneFrame{r: f.layer, left: int64(h.HeaderSize), sum: h.HasCheckSum}
	return f.blame(f.z.Reset(f.frame))
}

// end ends a frame, all of which has been inflated.
func (f *Frames) end() error {
	_, err := io.Copy(io.Discard, f.frame)
	f.in += f.frame.n
	f.frame = nil
	return err
}

// blame returns what is to be said of an error of the decoder.
func (f *Frames) blame(err error) error {
	switch {
	case err == nil:
		return nil
	case f.frame.err != nil && f.frame.err != io.EOF:
		return f.frame.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", toc.ErrLimit, err)
	}
	return fmt.Errorf("%w: zstd frame at byte %d: %w", toc.ErrMalformed, f.in, err)
}

// oneFrame is the bytes of one frame, which it finds the end of without inflating it.
type oneFrame struct {
	r    *bufio.Reader
	left int64 // bytes up to the next block's header
	last bool  // there is none
	sum  bool  // four bytes of checksum follow the last block
	n    int64 // bytes that were read
	err  error // that reading ended with
}

// Read implements [io.Reader].
func (o *oneFrame) Read(p []byte) (int, error) {
	if o.err == nil && o.left == 0 {
		o.err = o.block()
	}
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.r.Read(p[:min(int64(len(p)), o.left)])
	o.n, o.left = o.n+int64(n), o.left-int64(n)
	if o.err = unexpectedEnd(err); n > 0 {
		return n, nil
	}
	return 0, o.err
}

// block finds out how long the next block is (section 3.1.1.2).
func (o *oneFrame) block() error {
	if o.last {
		return io.EOF
	}
	b, err := o.r.Peek(3)
	if err != nil {
		return unexpectedEnd(err)
	}
	h := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
	size, kind := h>>3, h>>1&3
	switch kind {
	case 1: // one byte, repeated
		size = 1
	case 3:
		return fmt.Errorf("%w: a zstd block of a reserved type", toc.ErrMalformed)
	}
	o.left = 3 + size
	if o.last = h&1 == 1; o.last && o.sum {
		o.left += 4
	}
	return nil
}

// unexpectedEnd returns err, and for an end where there must be more what says so.
func unexpectedEnd(err error) error {
	if err == io.EOF {
		return fmt.Errorf("%w: %w", toc.ErrMalformed, io.ErrUnexpectedEOF)
	}
	return err
}

// FrameBefore returns the last of some frames, in order, that begins at a byte of the tar or before it.
func FrameBefore(all []Frame, at int64) Frame {
	return all[max(sort.Search(len(all), func(i int) bool { return all[i].Out > at })-1, 0)]
}

// OpenFrame returns the tar of a layer of size bytes from the beginning of a frame on.
func OpenFrame(layer io.ReaderAt, size int64, from Frame) (io.ReadCloser, error) {
	return decode(io.NewSectionReader(layer, from.In, size-from.In))
}
