package p2p

import (
	"context"
	"errors"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// peerName is the source that bytes of members are accounted to.
const peerName = "peer"

// borrow gets chunks from one member and from nobody else, for as long as it speaks
// within silence, and something comes within the patience. The error of a member
// that does not is errSilent. One that is the member's fault is held against it.
func (c *Client) borrow(ctx context.Context, id tracker.ID, q wire.Get, refs []chunk.Ref, silence time.Duration, yield func(chunk.Ref, []byte) error) error {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer silent.Stop()
	patient := time.AfterFunc(c.cfg.Timing.Patience, func() { cancel(errSilent) })
	defer patient.Stop()
	var stop error
	err := c.get(asking, id, q, refs, func(int64) { silent.Reset(silence) }, func(l lent) error {
		silent.Stop() // what is waited for now is this node's own limit
		patient.Stop()
		if stop = c.cfg.Download.Wait(ctx, len(l.bytes)); stop != nil {
			return stop
		}
		silent.Reset(silence)
		patient.Reset(c.cfg.Timing.Patience)
		c.keep(q.Host, l)
		chunk.SetOrigin(ctx, peerName)
		stop = yield(l.ref, l.bytes)
		return stop
	})
	switch {
	case err == nil, stop != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case context.Cause(asking) == errSilent:
		err = errSilent
	}
	c.fault(id, err)
	return err
}

// fault holds an error against a member, if it is the member's: wrong bytes as such,
// silence and broken lanes as a sign that it is down.
func (c *Client) fault(id tracker.ID, err error) {
	var busy *busyError
	var unavailable *unavailableError
	switch {
	case corrupt(err):
		c.blame(id, err)
	case errors.Is(err, chunk.ErrNotFound), errors.Is(err, errUntrusted), errors.Is(err, errLaneFull):
	case errors.As(err, &busy), errors.As(err, &unavailable):
	default:
		c.peers.fail(id)
	}
}

// request returns the request for adjacent chunks of a blob.
func request(repo wire.Repository, role wire.Role, refs []chunk.Ref) wire.Get {
	q := wire.Get{Repository: repo, Role: role, Blob: refs[0].Blob, Total: refs[0].Total, First: refs[0].Index(), Count: len(refs)}
	if role == wire.ToHolder {
		q.Authorization = "" // a holder asks nobody
	}
	for _, ref := range refs {
		if ref.Digest != "" {
			q.Digests = append(q.Digests, ref.Digest)
		}
	}
	if len(q.Digests) != len(refs) {
		q.Digests = nil
	}
	return q
}

func bytesOf(refs []chunk.Ref) (n int) {
	for _, ref := range refs {
		n += int(ref.Size)
	}
	return n
}
