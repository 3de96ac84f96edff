package tarball

import (
	"crypto/sha256"
	"io"

	"github.com/granary-oci/granary/toc"
)

// Scan makes the table of a tar that passes by, of at most 1 TiB, and reads it to
// its end. Every extent has its digest, and every file without holes its own. Start
// and End of the extents are 0, and Inner is where in the tar the content is:
// whoever knows how the tar is stored gives them their place.
//
// The error is one of r, or wraps [toc.ErrMalformed], with io.ErrUnexpectedEOF when the
// tar ends inside an entry, or [toc.ErrFormat] when it does not begin as a tar does.
func Scan(r io.Reader) (*toc.TOC, error) {
	piece := sha256.New()
	w := walker{tape: streamTape(r), whole: sha256.New()}
	w.place = func(x *toc.Extent, whole io.Writer) error {
		piece.Reset()
		x.Inner = w.tape.pos
		to := io.Writer(piece)
		if whole != nil {
			to = io.MultiWriter(piece, whole)
		}
		err := w.tape.copy(to, x.Size)
		piece.Sum(x.Digest[:0])
		return err
	}
	table, err := w.walk()
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, w.tape)
	return table, err
}
