package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type says what a frame is.
type Type uint8

// Requests and answers.
const (
	TypeGet    Type = 1 // [Get]: chunks of a blob
	TypeMap    Type = 2 // [MapRequest]: what there is of a blob, and where else
	TypeAsk    Type = 3 // [Ask]: a question to the upstream
	TypeLearn  Type = 4 // [Learn] and facts: what was learned of a repository
	TypeForget Type = 5 // [Forget]: tags are to be asked about again
	TypePing   Type = 6 // no header: is anybody there?
	TypeCancel Type = 7 // no header: the request's answer is not wanted any more

	TypeHave  Type = 8 // [Get]: these chunks, for which the owner referred to another, are here
	TypeOrder Type = 9 // [Order] and what it says: something is to be done, or told

	TypeData        Type = 16 // [Data] and a chunk
	TypeProgress    Type = 17 // [Progress]: still waiting for the upstream
	TypeDone        Type = 18 // no header: all has been said
	TypeNotFound    Type = 19 // no header
	TypeBusy        Type = 20 // [Busy]: ask these
	TypeUnavailable Type = 21 // [Unavailable]: why not
	TypeMapAnswer   Type = 22 // [Map]
	TypeAnswer      Type = 23 // [Answer], and a manifest where that was asked for, or what an order brought
)

// Last reports whether a request is answered when a frame of type t has come.
func (t Type) Last() bool {
	switch t {
	case TypeData, TypeProgress:
		return false
	}
	return true
}

// Limits of what one side may make the other keep.
const (
	MaxHeader  = 512 << 10 // bytes
	MaxBody    = 5 << 20   // bytes: a chunk, a manifest, facts
	MaxFacts   = 2 << 20   // bytes of facts, see [Learn]
	MaxOrder   = 1 << 20   // bytes of what an [Order] says
	MaxPending = 1024      // requests of one lane that are under way
	MaxCount   = 64        // chunks of one request

	frameHead = 12
)

// Frame is one frame of a lane.
type Frame struct {
	Type   Type
	ID     uint32 // of the request
	Header []byte
	Body   []byte
}

// ErrTooLarge says that a frame is larger than any may be.
var ErrTooLarge = errors.New("wire: frame is too large")

// Head returns the frame's first bytes, up to the body: what is to be written
// before it.
func (f Frame) Head() ([]byte, error) {
	if len(f.Header) > MaxHeader || len(f.Body) > MaxBody {
		return nil, ErrTooLarge
	}
	b := make([]byte, frameHead, frameHead+len(f.Header))
	b[0] = byte(f.Type)
	binary.BigEndian.PutUint32(b[1:], f.ID)
	b[5], b[6], b[7] = byte(len(f.Header)>>16), byte(len(f.Header)>>8), byte(len(f.Header))
	binary.BigEndian.PutUint32(b[8:], uint32(len(f.Body)))
	return append(b, f.Header...), nil
}

// Read reads the next frame. Its bytes are the caller's. At the end of r between
// two frames the error is [io.EOF].
func Read(r *bufio.Reader) (f Frame, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	f.Type, f.ID = Type(head[0]), binary.BigEndian.Uint32(head[1:])
	header := int(head[5])<<16 | int(head[6])<<8 | int(head[7])
	body := binary.BigEndian.Uint32(head[8:])
	if header > MaxHeader || body > MaxBody {
		return f, ErrTooLarge
	}
	if f.Header, err = readBytes(r, header); err != nil {
		return f, err
	}
	f.Body, err = readBytes(r, int(body))
	return f, err
}

func readBytes(r io.Reader, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, fmt.Errorf("wire: frame is cut short: %w", io.ErrUnexpectedEOF)
	}
	return p, nil
}

// Version is the highest version of the protocol that this package speaks.
const Version = 1

// Preface is the first bytes of each side of a lane.
var Preface = [6]byte{'g', 'r', 'n', 'r', 'y', Version}

// ReadPreface reads the other side's preface and returns the version that both
// speak. The error says that the other side speaks none of ours.
func ReadPreface(r io.Reader) (version int, err error) {
	var p [len(Preface)]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return 0, fmt.Errorf("wire: preface: %w", err)
	}
	if string(p[:5]) != string(Preface[:5]) || p[5] < 1 {
		return 0, errors.New("wire: the other side does not speak this protocol")
	}
	return int(min(p[5], Version)), nil
}
