// Package lend hands files that hold a whole content, verified, to other processes of
// this machine: as open files, read-only, over a Unix socket. What they do with such a
// file takes nothing of the node any more, and the file stays what it is when the store
// has long evicted it.
//
// # Who may
//
// Whoever connects could read the data directory as well: the socket is in it, is for
// its owner alone, and is answered to processes of that user and of root.
//
// # Frames
//
// A request is "GLF1", the length of what follows as 4 bytes, and up to [MaxParts]+1
// contents of 40 bytes, a SHA-256 digest and a size of 8 bytes: the content that is
// wanted, and, where it may be kept in parts, these in order. An answer is a byte, 1
// with an open file beside it (unix(7), SCM_RIGHTS), or 0. Numbers are big-endian.
package lend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// MaxParts bounds the parts of a content.
const MaxParts = 1 << 14

const (
	magic       = "GLF1"
	header      = len(magic) + 4
	contentSize = 32 + 8

	no, yes = 0, 1

	maxConns    = 64              // that are answered at once
	idleFor     = time.Minute     // that a connection may be silent
	transferFor = 5 * time.Second // for a frame to arrive, or to go
)

// ErrNot says that a content is not to be had as a file, now at least.
var ErrNot = errors.New("content is not lent as a file")

// Content is a content, or a part of one.
type Content struct {
	Digest [32]byte // SHA-256
	Size   int64    // in bytes
}

// Request says what is wanted.
type Request struct {
	Content
	// Parts are contents that the wanted one consists of, in order, if the asker knows
	// of any; it need not be right.
	Parts []Content
}

// Path returns where the socket of a node is that keeps its chunks in dir.
func Path(dir string) string { return filepath.Join(dir, "files.sock") }

func (q Request) encode() []byte {
	p := make([]byte, 0, header+contentSize*(1+len(q.Parts)))
	p = append(p, magic...)
	p = binary.BigEndian.AppendUint32(p, uint32(contentSize*(1+len(q.Parts))))
	for _, c := range append([]Content{q.Content}, q.Parts...) {
		p = append(p, c.Digest[:]...)
		p = binary.BigEndian.AppendUint64(p, uint64(c.Size))
	}
	return p
}

func readRequest(r io.Reader) (q Request, err error) {
	var h [header]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return q, err
	}
	n := int(binary.BigEndian.Uint32(h[len(magic):]))
	if string(h[:len(magic)]) != magic || n%contentSize != 0 || n < contentSize || n > (1+MaxParts)*contentSize {
		return q, fmt.Errorf("request of %d bytes: malformed", n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return q, err
	}
	for ; len(p) > 0; p = p[contentSize:] {
		c := Content{Digest: [32]byte(p), Size: int64(binary.BigEndian.Uint64(p[32:contentSize]))}
		if c.Size < 0 {
			return q, fmt.Errorf("content of %d bytes: malformed", c.Size)
		}
		q.Parts = append(q.Parts, c)
	}
	q.Content, q.Parts = q.Parts[0], q.Parts[1:]
	return q, nil
}
