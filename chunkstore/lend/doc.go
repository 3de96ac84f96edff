// Package lend hands files that hold a whole content, verified, to other processes of
// this machine: as open files, read-only, over a Unix socket. What they do with such a
// file takes nothing of the node any more, and the file stays what it is when the store
// has long evicted it.
//
// # Who may
//
// Whoever connects could read the data directory as well: the socket is in it, is for
// its owner alone, and is answered to processes of that user and of root. But they ask
// for what images say is in them, and an image may name the digest of a file that those
// who made it cannot read. So a request names the mount that it is made for, and the
// file in it, and the lender decides whether that may be read there.
//
// # Frames
//
// A request is "GLF2", the length of what follows as 4 bytes, three texts, each with its
// length as 2 bytes before it (the mount, the layer's digest and the file's path in the
// layer), the SHA-256 digest of the file's content as 32 bytes, and its size as 8. An answer is a
// byte, 1 with an open file beside it (unix(7), SCM_RIGHTS), or 0. Numbers are
// big-endian.
package lend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

const (
	magic      = "GLF2"
	header     = len(magic) + 4
	maxMount   = 64   // bytes
	maxLayer   = 256  // bytes
	maxName    = 4096 // bytes: PATH_MAX
	fixed      = 3*2 + 32 + 8
	maxRequest = fixed + maxMount + maxLayer + maxName

	no, yes = 0, 1

	maxConns    = 64                     // that are answered at once
	idleFor     = time.Minute            // that a connection may be silent
	transferFor = 5 * time.Second        // for a frame to arrive, or to go
	acceptPause = 100 * time.Millisecond // after a connection that could not be accepted
)

// ErrNot says that a content is not to be had as a file, now at least.
var ErrNot = errors.New("content is not lent as a file")

// Request says which file's content is wanted, and for whom.
type Request struct {
	Mount  string   // that the file is read for, as the lender knows it
	Layer  string   // digest of the layer that has the file
	Path   string   // of the file in the layer
	Digest [32]byte // of its content: SHA-256
	Size   int64    // in bytes
}

// Path returns where the socket of a node is that keeps its chunks in dir.
func Path(dir string) string { return filepath.Join(dir, "files.sock") }

// sendable reports whether a request is none that a server takes for malformed.
func (q Request) sendable() bool {
	return len(q.Mount) <= maxMount && len(q.Layer) <= maxLayer && len(q.Path) <= maxName && q.Size >= 0
}

func (q Request) encode() []byte {
	texts := []string{q.Mount, q.Layer, q.Path}
	n := fixed
	for _, s := range texts {
		n += len(s)
	}
	p := make([]byte, 0, header+n)
	p = append(p, magic...)
	p = binary.BigEndian.AppendUint32(p, uint32(n))
	for _, s := range texts {
		p = binary.BigEndian.AppendUint16(p, uint16(len(s)))
		p = append(p, s...)
	}
	p = append(p, q.Digest[:]...)
	return binary.BigEndian.AppendUint64(p, uint64(q.Size))
}

func readRequest(r io.Reader) (q Request, err error) {
	var h [header]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return q, err
	}
	n := binary.BigEndian.Uint32(h[len(magic):])
	if string(h[:len(magic)]) != magic || n < fixed || n > maxRequest {
		return q, fmt.Errorf("request of %d bytes: malformed", n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return q, err
	}
	for _, s := range []*string{&q.Mount, &q.Layer, &q.Path} {
		if len(p) < 2 {
			return q, errors.New("request: malformed")
		}
		size := int(binary.BigEndian.Uint16(p))
		if p = p[2:]; len(p) < size {
			return q, errors.New("request: malformed")
		}
		*s, p = string(p[:size]), p[size:]
	}
	if len(p) != len(q.Digest)+8 {
		return q, errors.New("request: malformed")
	}
	copy(q.Digest[:], p)
	if q.Size = int64(binary.BigEndian.Uint64(p[len(q.Digest):])); !q.sendable() {
		return q, errors.New("request: malformed")
	}
	return q, nil
}
