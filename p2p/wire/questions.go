package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Question is what is asked about a repository.
type Question int

const (
	// Resolve asks for the descriptor of a tag or digest.
	Resolve Question = 1
	// Manifest asks for its bytes too, which are the body of the answer's frame.
	Manifest Question = 2
	// Stat asks for the size of a blob.
	Stat Question = 3
	// Recall asks for what is known already, without the upstream being asked.
	// The reference is the hash of a credential, or empty. The body of the answer's
	// frame is facts, see [Learn].
	Recall Question = 4
	// Derived asks for a part of an object that is derived from a layer, which the
	// member makes if need be. The reference is a [Part], and the part the body of
	// the answer's frame; the answer's size is that of the object.
	Derived Question = 5
	// Content asks for an extent of a file of a layer. The reference is a [Part], and
	// the content the body of the answer's frame.
	Content Question = 6
	// Profile asks for the access profile of an image, as the member has it. The
	// reference is the digest of the image's manifest, and the profile the body of the
	// answer's frame, which is empty if there is none.
	Profile Question = 7
	// Digests asks a member that has all of a blob for digests of its chunks. The reference
	// is a [Part] of the map that they are, [chunk.DigestSize] bytes for each chunk, which
	// is the body of the answer's frame. The map is no kind of [Derived] object: a member
	// that does not know it would look for a layer in the blob.
	Digests Question = 8
	// Rebuild asks for a layer to be made again of older ones. The reference is an [Again]. The answer's size is
	// that of the layer if all of it is there now, else 0.
	Rebuild Question = 9
)

// Ask is a question to the upstream, made to the member that asks for all.
type Ask struct {
	Repository
	Question  Question
	Reference string // a tag or digest
}

// Header returns the message's header.
func (a Ask) Header() []byte {
	var w writer
	a.write(&w)
	w.number(4, int64(a.Question))
	w.text(5, a.Reference)
	return w
}

// ReadAsk reads the header of an [Ask]. A question that is not known is one of
// number 0.
func ReadAsk(header []byte) (a Ask, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 4:
			if a.Question = Question(f.int(math.MaxInt32)); a.Question > Rebuild {
				a.Question = 0
			}
		case 5:
			a.Reference = f.text(maxReference)
		default:
			a.read(f)
		}
	})
	return a, err
}

// maxReference bounds a reference, in bytes: a [Part] with a long path.
const maxReference = 16 << 10

// MaxPart bounds a part that is asked for, in bytes.
const MaxPart = 4 << 20

// Part is a part of something that is made from a layer: the reference of a question
// for it.
type Part struct {
	Layer    digest.Digest `json:"layer"`
	Manifest digest.Digest `json:"manifest,omitempty"` // that names the layer
	Kind     string        `json:"kind,omitempty"`     // of a derived object
	Path     string        `json:"path,omitempty"`     // of a file in the layer
	Offset   int64         `json:"offset"`             // in the object or the file
	Size     int64         `json:"size"`               // in bytes, MaxPart at most
	Total    int64         `json:"total,omitempty"`    // size of the layer in bytes, of [Digests]
}

// PartOfMap returns the digests of n chunks of a blob of total bytes, from chunk first on,
// as a question for [Digests] has them.
func PartOfMap(blob digest.Digest, total int64, first, n int) Part {
	return Part{Layer: blob, Total: total, Offset: int64(first) * chunk.DigestSize, Size: int64(n) * chunk.DigestSize}
}

// Chunks returns which chunks the digests are of that a question for [Digests] asks for: at
// most [MaxCount]. They may exist.
func (p Part) Chunks() (first, n int, err error) {
	count := int64(chunk.Count(p.Total))
	switch {
	case p.Total <= 0, p.Total > chunk.MaxBlobSize, p.Offset%chunk.DigestSize != 0, p.Size%chunk.DigestSize != 0,
		p.Size > MaxCount*chunk.DigestSize, p.Offset > count*chunk.DigestSize-p.Size:
		return 0, 0, fmt.Errorf("wire: part: digests at %d+%d of a blob of %d bytes", p.Offset, p.Size, p.Total)
	}
	return int(p.Offset / chunk.DigestSize), int(p.Size / chunk.DigestSize), nil
}

// Reference returns the part as a question has it.
func (p Part) Reference() string {
	text, err := json.Marshal(p)
	if err != nil {
		return "" // a path that is no text; nobody knows of it
	}
	return string(text)
}

// ReadPart reads the reference of a question for a part.
func ReadPart(reference string) (p Part, err error) {
	if err := json.Unmarshal([]byte(reference), &p); err != nil {
		return p, fmt.Errorf("wire: part: %w", err)
	}
	switch {
	case p.Layer.Validate() != nil, p.Manifest != "" && p.Manifest.Validate() != nil:
		return p, errors.New("wire: part: a digest is malformed")
	case p.Offset < 0, p.Size <= 0, p.Size > MaxPart:
		return p, fmt.Errorf("wire: part: %d bytes at %d", p.Size, p.Offset)
	}
	return p, nil
}

// Answer is the upstream's answer to a question.
type Answer struct {
	MediaType string
	Digest    digest.Digest
	Size      int64
	Warnings  []string      // of the upstream
	Age       time.Duration // since the upstream said so, in milliseconds on the wire
	Granted   time.Duration // since the upstream last served the asker, the same
}

const (
	maxWarnings = 16
	maxWarning  = 4 << 10
)

// Header returns the message's header.
func (a Answer) Header() []byte {
	var w writer
	w.text(1, a.MediaType)
	w.text(2, string(a.Digest))
	w.number(3, a.Size)
	for _, s := range a.Warnings[:min(len(a.Warnings), maxWarnings)] {
		w.text(4, s[:min(len(s), maxWarning)])
	}
	w.number(5, max(a.Age.Milliseconds(), 0))
	w.number(6, max(a.Granted.Milliseconds(), 0))
	return w
}

// ReadAnswer reads the header of an [Answer].
func ReadAnswer(header []byte) (a Answer, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 1:
			a.MediaType = f.text(maxMediaType)
		case 2:
			a.Digest = f.digest()
		case 3:
			a.Size = f.number64(math.MaxInt64)
		case 4:
			if f.room(len(a.Warnings), maxWarnings) {
				a.Warnings = append(a.Warnings, f.text(maxWarning))
			}
		case 5:
			a.Age = time.Duration(f.number64(maxMillis)) * time.Millisecond
		case 6:
			a.Granted = time.Duration(f.number64(maxMillis)) * time.Millisecond
		}
	})
	return a, err
}

// Learn tells the members that keep what is known of a repository what one has
// learned. The facts are the frame's body: the JSON of a proxy.Facts, which this
// package does not look into.
type Learn struct{ Repository }

// Header returns the message's header.
func (l Learn) Header() []byte {
	var w writer
	l.write(&w)
	return w
}

// ReadLearn reads the header of a [Learn].
func ReadLearn(header []byte) (l Learn, err error) {
	err = read(header, l.read)
	return l, err
}

// Forget says that the upstream is to be asked again about a tag, or about all
// tags of a repository.
type Forget struct {
	Host, Name string
	Tag        string // "" for all
}

// Header returns the message's header.
func (r Forget) Header() []byte {
	var w writer
	w.text(1, r.Host)
	w.text(2, r.Name)
	w.text(3, r.Tag)
	return w
}

// ReadForget reads the header of a [Forget].
func ReadForget(header []byte) (r Forget, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 1:
			r.Host = f.text(maxName)
		case 2:
			r.Name = f.text(maxName)
		case 3:
			r.Tag = f.text(maxName)
		}
	})
	return r, err
}

// Order is what a member is to do because whoever commands another one wants it of the whole
// cluster. What it says is the frame's body, and what it brings that of the answer's: JSON
// that this package does not look into.
type Order struct {
	Kind string // what is to be done
}

// Header returns the message's header.
func (o Order) Header() []byte {
	var w writer
	w.text(1, o.Kind)
	return w
}

// ReadOrder reads the header of an [Order].
func ReadOrder(header []byte) (o Order, err error) {
	err = read(header, func(f field) {
		if f.number == 1 {
			o.Kind = f.text(maxName)
		}
	})
	return o, err
}
