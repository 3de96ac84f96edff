package proxy

import (
	"context"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// patient asks other members once more, and once more, for what nobody gave while the upstream cannot be
// asked: one that has it may have been busy for a moment, and there is nowhere else to go.
type patient struct {
	far, held chunk.Source
	peers     Peers
}

// onceMore are the pauses before.
var onceMore = []time.Duration{time.Second, 2 * time.Second}

// Get implements [chunk.Source].
func (s patient) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

// GetRun implements [chunk.Runner].
func (s patient) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	var stop error // what yield returned is nobody's error
	give := func(ref chunk.Ref, p []byte) error {
		if len(refs) > 0 && ref.Offset == refs[0].Offset {
			refs = refs[1:]
		}
		stop = yield(ref, p)
		return stop
	}
	err := chunk.GetRun(ctx, s.far, refs, give)
	for _, pause := range onceMore {
		if stop != nil || !upstream.Unreachable(err) || s.peers.Alone() {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		if again := chunk.GetRun(ctx, s.held, refs, give); again == nil || stop != nil {
			return again
		}
	}
	return err
}
