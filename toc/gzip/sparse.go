package gzip

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/flate"
)

// traced is how many bytes of the blob behind a point are looked at, to see what they
// refer to. A literal takes up to 15 bits (RFC 1951 section 3.2.7), so these inflate to 32
// KiB at least, unless they are many blocks of which each has next to nothing in it.
const traced = 2 * maxWindow

// tracer makes windows sparse.
//
// A distance is 32 KiB at most (RFC 1951 section 2): only what comes out in the first 32
// KiB behind a point can refer to the window before it, what is further behind refers
// to that. Of the window it takes but a part, most often less than a tenth.
//
// Which part is seen by inflating what is behind the point with windows that are made
// up. Which codes come, and how far back they refer, does not depend on a window's
// content. So what comes out is a literal, whatever the window, or a byte of the
// window, through however many copies. Two windows of which every byte differs tell
// which; and as it differs by 1 to 128, they tell a byte's place in 15 bits.
type tracer struct {
	windows [2][maxWindow]byte
	out     [2][maxWindow]byte
	z       resetter // nil before the first use
}

// resetter is what [flate.NewReaderOpts] gives.
type resetter interface {
	io.Reader
	ResetCP(io.Reader, flate.InflateCheckpoint) error
}

func newTracer() *tracer {
	t := new(tracer)
	for i := range maxWindow {
		t.windows[0][i] = byte(i)
		t.windows[1][i] = byte(i) + 1 + byte(i>>8)
	}
	return t
}

// sparse returns a window of the same length, with zeros for what nothing behind the
// point refers to. If it cannot be told from the bytes that are behind it, all of the
// window is kept.
func (t *tracer) sparse(f found) []byte {
	n, ok := t.inflate(0, f)
	if ok {
		_, ok = t.inflate(1, f) // as far as the first time
	}
	if !ok {
		return f.window
	}
	sparse := make([]byte, len(f.window))
	for i, a := range t.out[0][:n] {
		if more := t.out[1][i] - a; more > 0 {
			place := int(more-1)<<8 | int(a)
			sparse[place] = f.window[place]
		}
	}
	return sparse
}

// inflate inflates what is behind a point with a window of its own, for 32 KiB or to the
// end of the member. What comes then does not refer to this one.
func (t *tracer) inflate(i int, f found) (n int, ok bool) {
	r := bytes.NewReader(f.behind)
	at := flate.InflateCheckpoint{BitOffset: f.bits, Window: t.windows[i][:len(f.window)]}
	if t.z == nil {
		t.z = flate.NewReaderOpts(r, flate.WithResumeFrom(at)).(resetter)
	} else if err := t.z.ResetCP(r, at); err != nil {
		return 0, false
	}
	out := t.out[i][:]
	for n < len(out) {
		k, err := t.z.Read(out[n:])
		n += k
		if err != nil && n < len(out) {
			return n, err == io.EOF
		}
	}
	return n, true
}
