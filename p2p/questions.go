package p2p

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy/trace"
	"github.com/granary-oci/granary/tracker"
)

// ErrOwn says that a question is the node's own to ask: it is the first of those
// that answer for the repository, or none of the others can.
var ErrOwn = errors.New("no other member answers for it")

// DeniedError is a member's word that the upstream refuses somebody.
type DeniedError struct{ Message string }

func (e *DeniedError) Error() string { return e.Message }

const (
	askFor    = 25 * time.Second // for one place that is behind a bad line, and the next
	makeFor   = time.Hour
	recallFor = time.Second
	learnFor  = 5 * time.Second
)

// repositoryKey is the key by which a repository is placed: all that is asked about
// it is asked by one member, who so knows all of it.
func repositoryKey(host, name string) string { return "repository " + host + "/" + name }

// Ask asks the members that answer for a repository, the best first, until one has
// an answer. Its errors are [ErrOwn], [chunk.ErrNotFound] and [*DeniedError], as the
// upstream said to the member, and that of ctx.
func (c *Client) Ask(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error) {
	return c.askOwners(ctx, repositoryKey(q.Host, q.Name), q, askFor)
}

// AskPart is Ask for a part of something that is made from a layer, of the members
// that answer for key. One that makes it first may take an hour, while it says that
// it is at it.
func (c *Client) AskPart(ctx context.Context, key string, repo wire.Repository, q wire.Question, part wire.Part) (size int64, body []byte, err error) {
	a, body, err := c.askOwners(ctx, key, wire.Ask{Repository: repo, Question: q, Reference: part.Reference()}, makeFor)
	return a.Size, body, err
}

// Rebuild has the member that answers for a layer's digest make it again, as AskPart has things made. It
// reports whether all of the layer is there.
func (c *Client) Rebuild(ctx context.Context, repo wire.Repository, again wire.Again) (made bool, err error) {
	a, _, err := c.askOwners(ctx, string(again.Layer), wire.Ask{Repository: repo, Question: wire.Rebuild, Reference: again.Reference()}, makeFor)
	return err == nil && a.Size == again.Size, err
}

// Answers reports whether this node is the one that answers for key.
func (c *Client) Answers(key string) bool {
	owners := c.cfg.Members.View().Owners(key, 1)
	return len(owners) == 0 || owners[0].ID == c.self()
}

func (c *Client) askOwners(ctx context.Context, key string, q wire.Ask, within time.Duration) (a wire.Answer, body []byte, err error) {
	view := c.cfg.Members.View()
	for _, p := range view.Owners(key, tracker.Copies) {
		if p.ID == view.Self().ID {
			return a, nil, ErrOwn
		}
		if !c.peers.sound(p.ID) {
			continue // the next one can do it as well
		}
		a, body, err = c.askOne(ctx, p.ID, q, within, c.cfg.Timing.HedgeMax)
		var unavailable *unavailableError
		switch {
		case err == nil, errors.Is(err, chunk.ErrNotFound), ctx.Err() != nil:
			return a, body, err
		case errors.As(err, &unavailable) && unavailable.Cause == wire.CauseDenied:
			return a, nil, &DeniedError{unavailable.Error()}
		case errors.As(err, &unavailable), errors.Is(err, context.DeadlineExceeded):
			return a, nil, ErrOwn // of the upstream the next one would hear the same
		}
		c.fault(p.ID, err)
	}
	return a, nil, ErrOwn
}

// askOne asks one member, which says now and then that it is at it: it is given up after some
// silence.
func (c *Client) askOne(ctx context.Context, id tracker.ID, q wire.Ask, within, silence time.Duration) (a wire.Answer, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ctx, span := trace.Start(ctx, "ask member", otel.SpanKindClient, attribute.String("granary.peer", string(id)))
	defer func() { span.End(err) }()
	q.Repository = named(ctx, q.Repository)
	call, err := c.peers.request(ctx, id, wire.Frame{Type: wire.TypeAsk, Header: q.Header()}, 0)
	if err != nil {
		return a, nil, err
	}
	defer call.cancel()
	for {
		f, err := c.nextWithin(ctx, call, silence)
		if err != nil {
			return a, nil, err
		}
		switch f.Type {
		case wire.TypeProgress:
		case wire.TypeAnswer:
			if a, err = wire.ReadAnswer(f.Header); err != nil {
				return a, nil, fmt.Errorf("%w: %w", errBroken, err)
			}
			return a, f.Body, nil
		default:
			return a, nil, c.refusal(id, f)
		}
	}
}

// nextWithin returns the next frame of an answer, or an error after some silence.
func (c *Client) nextWithin(ctx context.Context, call *call, silence time.Duration) (wire.Frame, error) {
	quiet, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	f, err := call.next(quiet)
	if quiet.Err() != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = errSilent
	}
	return f, err
}

// Recall asks everybody who keeps what is known of a repository for it, without the
// upstream being asked, and calls learn with the facts of each. One more is asked
// than keep it, for those who joined since may have taken the place of one.
//
// caller is the hash of who it is about.
func (c *Client) Recall(ctx context.Context, repo wire.Repository, caller string, learn func(facts []byte)) {
	c.gather(ctx, wire.Ask{Repository: repo, Question: wire.Recall, Reference: caller}, learn)
}

// Profiles asks the same members for the access profile of an image of the repository,
// and calls learn with that of each.
func (c *Client) Profiles(ctx context.Context, repo wire.Repository, image digest.Digest, learn func(profile []byte)) {
	c.gather(ctx, wire.Ask{Repository: repo, Question: wire.Profile, Reference: string(image)}, learn)
}

// gather asks all who keep what is known of a repository, and calls learn with what each
// answers.
func (c *Client) gather(ctx context.Context, q wire.Ask, learn func([]byte)) {
	view := c.cfg.Members.View()
	ctx, cancel := context.WithTimeout(ctx, recallFor)
	defer cancel()
	answers := make(chan []byte, tracker.Copies+2)
	asked := 0
	for _, p := range view.Keepers(repositoryKey(q.Host, q.Name), tracker.Copies+2) {
		if p.ID == view.Self().ID || !c.peers.usable(p.ID) {
			continue
		}
		asked++
		go func() {
			_, body, err := c.askOne(ctx, p.ID, q, recallFor, c.cfg.Timing.HedgeMax)
			if err != nil {
				body = nil
			}
			answers <- body
		}()
	}
	for range asked {
		if answer := <-answers; len(answer) > 0 {
			learn(answer)
		}
	}
}

// Keeps reports whether this node is one of those who keep what is known of a
// repository, or was one before somebody joined.
func (c *Client) Keeps(host, name string) bool {
	keepers := c.cfg.Members.View().Keepers(repositoryKey(host, name), tracker.Copies+1)
	return slices.ContainsFunc(keepers, func(p tracker.Peer) bool { return p.ID == c.self() })
}

// Tell tells the others who keep what is known of a repository what was learned of
// it. It returns at once; what does not arrive is learned again some day.
func (c *Client) Tell(repo wire.Repository, facts []byte) {
	view := c.cfg.Members.View()
	for _, p := range view.Keepers(repositoryKey(repo.Host, repo.Name), tracker.Copies) {
		if p.ID == view.Self().ID || !c.peers.usable(p.ID) {
			continue
		}
		c.peers.background(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, learnFor)
			defer cancel()
			_ = c.Learn(ctx, p.ID, repo, facts)
		})
	}
}
