package recipe

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// piece is how much is handed on at once.
const piece = 64 << 10

// Rebuild writes the layer that tar becomes. It needs 1 to 1.5 MiB of memory, and takes what
// compressing takes. It reads at most a byte more than TarSize, and writes at most Size.
//
// The error is one of ctx, tar or w; io.ErrUnexpectedEOF when the tar is too short; it wraps
// [toc.ErrLimit] when the encoder is not known here, or [toc.ErrMalformed] when the recipe makes no sense,
// or the tar is not the recipe's, as far as sizes tell. Whether the bytes are the layer's, their digest says.
func (r *Recipe) Rebuild(ctx context.Context, w io.Writer, tar io.Reader) error {
	if err := r.check(); err != nil {
		return err
	}
	out := &limited{w: w, left: r.Size}
	in := &stoppable{ctx: ctx, r: tar}
	p, err := r.Encoder.packer(out)
	if err != nil {
		return err
	}
	for _, m := range r.Members {
		if err := p.member(m, in); err != nil {
			return err
		}
	}
	if _, err := out.Write(r.Tail); err != nil {
		return err
	}
	if out.left > 0 {
		return malformed("the blob is %d bytes too short: the tar or the recipe is not the blob's", out.left)
	}
	return in.end()
}

func (p *packer) member(m Member, tar *stoppable) error {
	if err := p.begin(m.Header); err != nil {
		return err
	}
	if n, err := io.CopyBuffer(p, io.LimitReader(tar, m.Size), tar.buffer()); err != nil {
		return err
	} else if n < m.Size {
		return fmt.Errorf("recipe: tar: %w", io.ErrUnexpectedEOF)
	}
	return p.end(m.Flushed)
}

// limited writes no more than the blob has.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		return 0, malformed("the blob would become too long: the tar or the recipe is not the blob's")
	}
	n, err := l.w.Write(p)
	l.left -= int64(n)
	if err != nil {
		return n, fmt.Errorf("recipe: write: %w", err)
	}
	return n, nil
}

// stoppable reads a tar until its context ends.
type stoppable struct {
	ctx context.Context
	r   io.Reader
	buf []byte
}

func (s *stoppable) buffer() []byte {
	if s.buf == nil {
		s.buf = make([]byte, piece)
	}
	return s.buf
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, fmt.Errorf("recipe: tar: %w", err)
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("recipe: tar: %w", err)
	}
	return n, err
}

// end reports a tar that goes on.
func (s *stoppable) end() error {
	n, err := io.ReadFull(s, make([]byte, 1))
	switch {
	case n > 0:
		return malformed("the tar goes on: it is not the recipe's")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
