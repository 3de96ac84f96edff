package tarball

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/granary-oci/granary/toc"
)

// maxTar bounds how much of a stream is read: 1 TiB.
const maxTar = 1 << 40

// tape is a tar that is read forwards.
type tape struct {
	*bufio.Reader
	pos int64 // of the next byte
	// at is what a tape that can skip without reading reads, size bytes; otherwise
	// it is nil.
	at   io.ReaderAt
	size int64
}

func seekingTape(r io.ReaderAt, size int64) *tape {
	return &tape{Reader: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), window), at: r, size: size}
}

func streamTape(r io.Reader) *tape {
	return &tape{Reader: bufio.NewReaderSize(&bounded{r, maxTar}, 256<<10)}
}

// fill reads all of p. It is io.EOF when there is nothing left, and
// io.ErrUnexpectedEOF when there is less.
func (t *tape) fill(p []byte) error {
	n, err := io.ReadFull(t.Reader, p)
	t.pos += int64(n)
	return err
}

// special reads the n bytes of content of an entry that describes others, which are
// bounded.
func (t *tape) special(n int64) ([]byte, error) {
	if n > maxSpecial {
		return nil, fmt.Errorf("%w: a header of %d bytes", toc.ErrLimit, n)
	}
	p := make([]byte, n)
	return p, t.must(p)
}

// must reads all of p, of which nothing may be missing.
func (t *tape) must(p []byte) error {
	err := t.fill(p)
	if err == io.EOF && len(p) > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// skip passes over n bytes.
func (t *tape) skip(n int64) error {
	if t.at == nil || n <= int64(t.Buffered()) {
		return t.copy(io.Discard, n)
	}
	if n > t.size-t.pos {
		return io.ErrUnexpectedEOF
	}
	t.pos += n
	t.Reset(io.NewSectionReader(t.at, t.pos, t.size-t.pos))
	return nil
}

// copy passes over n bytes, and gives them to w as they are in the buffer.
func (t *tape) copy(w io.Writer, n int64) error {
	for n > 0 {
		if _, err := t.Peek(1); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		p, _ := t.Peek(int(min(n, int64(t.Buffered()))))
		if _, err := w.Write(p); err != nil {
			return err
		}
		t.Discard(len(p)) //nolint:errcheck // it is in the buffer
		t.pos += int64(len(p))
		n -= int64(len(p))
	}
	return nil
}

// align passes over what fills up the last block. It is io.EOF when the archive
// ends inside.
func (t *tape) align() error {
	err := t.skip(-t.pos & (blockSize - 1))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// bounded is a reader that refuses to read more than left bytes.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("%w: a tar of more than %d bytes", toc.ErrLimit, int64(maxTar))
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
