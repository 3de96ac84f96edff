package wire

import (
	"fmt"
	"math"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/tracker"
)

// Bounds of single fields, in bytes, and of lists.
const (
	maxName          = 512
	maxAuthorization = 32 << 10
	maxDigest        = 256
	maxID            = 128
	maxRequest       = 64
	maxTrace         = 128
	maxVia           = 1 << 10
	maxText          = 1 << 10
	maxMediaType     = 256
	maxSignature     = 128
	maxReferrals     = 16
	maxBitmap        = chunk.MaxBlobSize / chunk.Size / 8
	maxChunkIndex    = chunk.MaxBlobSize / chunk.Size
	maxMillis        = math.MaxInt64 / int64(time.Millisecond)
)

// Role is whom a request for chunks is made to. It is what keeps requests from
// going in circles: a holder asks nobody, and an owner no other owner.
type Role int

const (
	// ToHolder is answered from what is stored.
	ToHolder Role = 0
	// ToOwner is answered from what is stored, providers and the upstream; or
	// with referrals to those who have been given the same.
	ToOwner Role = 1
	// ToOwnerAgain is ToOwner for those who have been referred in vain.
	ToOwnerAgain Role = 2
)

// Repository is where something is read, and in whose name.
type Repository struct {
	Host, Name    string
	Authorization string // the client's, for the upstream; never kept
	// Itself says that whoever asks has credentials of its own that are for
	// everybody. Only then it is answered with such credentials of another.
	Itself bool
	// First says that who is asked is taken for the owner of the blob's first
	// stripe, which reads the whole of what the upstream does not send in parts.
	First bool
	// Request names the request that something is asked for, in logs, and Trace in traces: a
	// traceparent (W3C Trace Context, section 3.2). Both may be "".
	Request, Trace string
	// Via is what the request has come through (RFC 9110, section 7.6.3), so that one which goes in a
	// circle of sites ends.
	Via string
}

func (r Repository) write(w *writer) {
	w.text(1, r.Host)
	w.text(2, r.Name)
	w.text(3, r.Authorization)
	w.flag(15, r.Itself)
	w.flag(14, r.First)
	w.text(13, r.Request)
	w.text(12, r.Trace)
	w.text(11, r.Via)
}

func (r *Repository) read(f field) {
	switch f.number {
	case 1:
		r.Host = f.text(maxName)
	case 2:
		r.Name = f.text(maxName)
	case 3:
		r.Authorization = f.text(maxAuthorization)
	case 15:
		r.Itself = f.flag()
	case 14:
		r.First = f.flag()
	case 13:
		r.Request = f.text(maxRequest)
	case 12:
		r.Trace = f.text(maxTrace)
	case 11:
		r.Via = f.text(maxVia)
	}
}

// Get asks for adjacent chunks of a blob, which are answered in order by as many
// frames of [TypeData] and one of [TypeDone]. The repository's host says whose
// bytes are meant: nodes keep apart what hosts claim a blob to be.
type Get struct {
	Repository
	Role         Role
	Blob         digest.Digest
	Total        int64 // the blob's size in bytes
	First, Count int   // chunks, at most [MaxCount]
	// Digests are what is known of the chunks' own digests: none, or one for each
	// chunk. Who has such bytes in any blob may answer with them.
	Digests []digest.Digest
	// Owner is who has referred to a holder. One that has the stripe from the same owner, be
	// it by way of others, sends what it has not got yet when it comes: owners see to it that
	// nobody waits for itself.
	Owner tracker.ID
	// Load is how many stripes the asker is sending to others: whoever has the least is the best to
	// refer to.
	Load int
}

// Header returns the message's header.
func (g Get) Header() []byte {
	var w writer
	g.write(&w)
	w.number(4, int64(g.Role))
	w.text(5, string(g.Blob))
	w.number(6, g.Total)
	w.number(7, int64(g.First))
	w.number(8, int64(g.Count))
	for _, d := range g.Digests {
		w.text(9, string(d))
	}
	w.text(10, string(g.Owner))
	w.number(16, int64(g.Load))
	return w
}

// ReadGet reads the header of a [Get]. What it returns without an error names
// chunks that may exist.
func ReadGet(header []byte) (g Get, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 4:
			g.Role = Role(f.int(int(ToOwnerAgain)))
		case 5:
			g.Blob = f.digest()
		case 6:
			g.Total = f.number64(chunk.MaxBlobSize)
		case 7:
			g.First = f.int(maxChunkIndex)
		case 8:
			g.Count = f.int(MaxCount)
		case 9:
			if f.room(len(g.Digests), MaxCount) {
				g.Digests = append(g.Digests, f.digest())
			}
		case 10:
			g.Owner = tracker.ID(f.text(maxID))
		case 16:
			g.Load = f.int(math.MaxInt32)
		default:
			g.read(f)
		}
	})
	if err == nil && (g.Blob == "" || g.Count < 1 || g.First+g.Count > chunk.Count(g.Total) || len(g.Digests) != 0 && len(g.Digests) != g.Count) {
		err = errMalformed
	}
	return g, err
}

// Claim is a member's word on the bytes of a chunk of a blob: it fetched the chunk from
// the upstream, or from a parent that it names, or has proven the blob. It gives the chunk's digest, or, of a proven
// blob, the links between which it fits, which are there without hashing it once more.
type Claim struct {
	Digest        digest.Digest // SHA-256 of the chunk
	Before, After chunk.Link    // without a Digest: none before the first chunk, none after the last
	Signer        tracker.ID
	Signature     []byte // of [Claim.Text]
	Parent        string // that the signer had the chunk from; "" for the registry itself, and of what is proven
}

// Says reports whether the claim says what the chunk is.
func (c Claim) Says() bool { return c.Digest != "" || c.Before != "" || c.After != "" }

// Check reports whether p is what the claim says of a chunk. The error is a
// [*chunk.CorruptError] that blames source.
func (c Claim) Check(source string, ref chunk.Ref, p []byte) error {
	if ref.Digest = c.Digest; c.Digest != "" {
		return ref.Check(source, p)
	}
	if int64(len(p)) != ref.Size {
		return &chunk.CorruptError{Source: source, Ref: ref, Reason: fmt.Sprintf("%d bytes arrived", len(p))}
	}
	return ref.CheckLink(source, c.Before, c.After, p)
}

// Text returns what a claim on a chunk signs.
func (c Claim) Text(ref chunk.Ref) []byte {
	var w writer
	w.text(1, "granary claim 1")
	w.text(2, string(ref.Blob))
	w.number(3, ref.Offset)
	w.number(4, ref.Size)
	w.number(5, ref.Total)
	w.text(6, string(c.Digest))
	w.text(7, string(c.Signer))
	w.text(8, string(c.Before))
	w.text(9, string(c.After))
	w.text(10, c.Parent)
	return w
}

const (
	maxLink   = 64  // bytes of a link: one of SHA-512
	maxParent = 255 // bytes of the name of a parent
)

// Data is one chunk, whose bytes are the frame's body.
type Data struct {
	Index      int  // of the chunk in its blob
	Compressed bool // the body is a zstd frame (RFC 8878) of the chunk
	Claim      Claim
}

// Header returns the message's header. A chunk that is a whole blob needs no claim.
func (d Data) Header() []byte {
	var w writer
	w.number(1, int64(d.Index))
	w.flag(2, d.Compressed)
	w.text(3, string(d.Claim.Digest))
	w.text(4, string(d.Claim.Signer))
	w.bytes(5, d.Claim.Signature)
	w.text(6, string(d.Claim.Before))
	w.text(7, string(d.Claim.After))
	w.text(8, d.Claim.Parent)
	return w
}

// ReadData reads the header of a [Data].
func ReadData(header []byte) (d Data, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 1:
			d.Index = f.int(maxChunkIndex)
		case 2:
			d.Compressed = f.flag()
		case 3:
			d.Claim.Digest = f.digest()
		case 4:
			d.Claim.Signer = tracker.ID(f.text(maxID))
		case 5:
			d.Claim.Signature = f.bytes(maxSignature)
		case 6:
			d.Claim.Before = chunk.Link(f.bytes(maxLink))
		case 7:
			d.Claim.After = chunk.Link(f.bytes(maxLink))
		case 8:
			d.Claim.Parent = f.text(maxParent)
		}
	})
	return d, err
}

// Progress says that whoever was asked waits, and counts what grows meanwhile: what
// it has sent of the answer, and what it gets from the upstream, so that a queue on
// a thin link is seen to move. In bytes.
type Progress struct{ Bytes int64 }

// Header returns the message's header.
func (p Progress) Header() []byte {
	var w writer
	w.number(1, p.Bytes)
	return w
}

// ReadProgress reads the header of a [Progress].
func ReadProgress(header []byte) (p Progress, err error) {
	err = read(header, func(f field) {
		if f.number == 1 {
			p.Bytes = f.number64(math.MaxInt64)
		}
	})
	return p, err
}

// Busy names members that have been given what was asked for.
type Busy struct{ Referrals []tracker.ID }

// Header returns the message's header.
func (b Busy) Header() []byte {
	var w writer
	for _, id := range b.Referrals {
		w.text(1, string(id))
	}
	return w
}

// ReadBusy reads the header of a [Busy].
func ReadBusy(header []byte) (b Busy, err error) {
	err = read(header, func(f field) {
		if f.number == 1 && f.room(len(b.Referrals), maxReferrals) {
			b.Referrals = append(b.Referrals, tracker.ID(f.text(maxID)))
		}
	})
	return b, err
}

// Cause is why something is unavailable.
type Cause int

// Causes. Numbers that are not known are [CauseFailed].
const (
	CauseFailed      Cause = 0 // for any other reason
	CauseDenied      Cause = 1 // the upstream refuses the credentials
	CauseUnreachable Cause = 2 // the upstream cannot be asked
	CauseOverloaded  Cause = 3 // too much is under way
)

// Unavailable says why a member cannot answer.
type Unavailable struct {
	Cause   Cause
	Message string // for people
}

// Header returns the message's header.
func (u Unavailable) Header() []byte {
	var w writer
	w.number(1, int64(u.Cause))
	w.text(2, clip(u.Message))
	return w
}

// ReadUnavailable reads the header of an [Unavailable].
func ReadUnavailable(header []byte) (u Unavailable, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 1:
			u.Cause = Cause(f.int(math.MaxInt32))
		case 2:
			u.Message = f.text(maxText)
		}
	})
	return u, err
}

func clip(s string) string { return s[:min(len(s), maxText)] }

// MapRequest asks what a member has of a blob, and who else has all of it.
type MapRequest struct {
	Host string // whose bytes are meant
	Blob digest.Digest
}

// Header returns the message's header.
func (m MapRequest) Header() []byte {
	var w writer
	w.text(1, m.Host)
	w.text(2, string(m.Blob))
	return w
}

// ReadMapRequest reads the header of a [MapRequest].
func ReadMapRequest(header []byte) (m MapRequest, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 1:
			m.Host = f.text(maxName)
		case 2:
			m.Blob = f.digest()
		}
	})
	if err == nil && m.Blob == "" {
		err = errMalformed
	}
	return m, err
}

// Map is what a member has of a blob.
type Map struct {
	Total     int64  // the blob's size in bytes; 0 if nothing of it is here
	Proven    bool   // all of it is here, and has matched its digest
	Have      []byte // a bit for each chunk that is here, the lowest first
	Providers []tracker.ID
}

// Header returns the message's header.
func (m Map) Header() []byte {
	var w writer
	w.number(1, m.Total)
	w.flag(2, m.Proven)
	w.bytes(3, m.Have)
	for _, id := range m.Providers {
		w.text(4, string(id))
	}
	return w
}

// MaxProviders is how many providers a [Map] may name.
const MaxProviders = 64

// ReadMap reads the header of a [Map].
func ReadMap(header []byte) (m Map, err error) {
	err = read(header, func(f field) {
		switch f.number {
		case 1:
			m.Total = f.number64(chunk.MaxBlobSize)
		case 2:
			m.Proven = f.flag()
		case 3:
			m.Have = f.bytes(maxBitmap)
		case 4:
			if f.room(len(m.Providers), MaxProviders) {
				m.Providers = append(m.Providers, tracker.ID(f.text(maxID)))
			}
		}
	})
	return m, err
}
