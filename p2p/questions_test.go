package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

func TestQuestionsAreAnsweredByOneMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c", "d")
		q := wire.Ask{Repository: app, Question: wire.Manifest, Reference: "v1"}
		want := wire.Answer{MediaType: "application/json", Size: 3, Age: time.Second}
		asked := make(map[tracker.ID]int)
		var mu sync.Mutex
		for id, n := range c.nodes {
			n.answer = func(context.Context, wire.Ask) (wire.Answer, []byte, error) {
				time.Sleep(10 * time.Second) // the upstream takes its time
				mu.Lock()
				defer mu.Unlock()
				asked[id]++
				return want, []byte("abc"), nil
			}
		}
		own := 0
		for id, n := range c.nodes {
			a, body, err := n.client.Ask(t.Context(), q)
			if errors.Is(err, p2p.ErrOwn) {
				own++
				continue
			}
			if err != nil || a.MediaType != want.MediaType || a.Age != want.Age || string(body) != "abc" {
				t.Errorf("node %s: %+v, %q, error %v", id, a, body, err)
			}
		}
		if own != 1 || len(asked) != 1 {
			t.Errorf("%d nodes are to ask for themselves, %d were asked; want 1 of each", own, len(asked))
		}
	})
}

// TestAPartMayTakeLong to be made, as long as whoever makes it says so; and it is made
// by the member that answers for it.
func TestAPartMayTakeLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c", "d")
		part := wire.Part{Layer: digest.FromString("layer"), Kind: "index", Offset: 5, Size: 3}
		made := make(map[tracker.ID]int)
		var mu sync.Mutex
		for id, n := range c.nodes {
			n.answer = func(_ context.Context, q wire.Ask) (wire.Answer, []byte, error) {
				time.Sleep(40 * time.Minute)
				if got, err := wire.ReadPart(q.Reference); err != nil || got != part || q.Question != wire.Derived {
					t.Errorf("%+v, %v", got, err)
				}
				mu.Lock()
				defer mu.Unlock()
				made[id]++
				return wire.Answer{Size: 8}, []byte("abc"), nil
			}
		}
		for id, n := range c.nodes {
			size, body, err := n.client.AskPart(t.Context(), "key", app, wire.Derived, part)
			switch {
			case n.client.Answers("key"):
				if !errors.Is(err, p2p.ErrOwn) {
					t.Errorf("node %s, which answers for it itself: %v", id, err)
				}
			case err != nil || size != 8 || string(body) != "abc":
				t.Errorf("node %s: %d, %q, %v", id, size, body, err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(made) != 1 {
			t.Errorf("made by %v", made)
		}
	})
}

func TestPartsThatCannotBe(t *testing.T) {
	good := wire.Part{Layer: digest.FromString("layer"), Size: 1}
	for name, change := range map[string]func(p *wire.Part){
		"no layer":         func(p *wire.Part) { p.Layer = "" },
		"a bad manifest":   func(p *wire.Part) { p.Manifest = "x" },
		"before the start": func(p *wire.Part) { p.Offset = -1 },
		"nothing":          func(p *wire.Part) { p.Size = 0 },
		"too much":         func(p *wire.Part) { p.Size = wire.MaxPart + 1 },
	} {
		p := good
		change(&p)
		if _, err := wire.ReadPart(p.Reference()); err == nil {
			t.Errorf("%s is read", name)
		}
	}
	if _, err := wire.ReadPart("no JSON"); err == nil {
		t.Error("what is no JSON is read")
	}
}

func TestAQuestionsErrorsAreTheUpstreams(t *testing.T) {
	for _, tt := range []struct {
		name     string
		err      error
		expected func(error) bool
	}{
		{"not found", chunk.ErrNotFound, func(err error) bool { return errors.Is(err, chunk.ErrNotFound) }},
		{"denied", chunk.ErrDenied, func(err error) bool { return errors.As(err, new(*p2p.DeniedError)) }},
		{"unreachable", errUnreachable, func(err error) bool { return errors.Is(err, p2p.ErrOwn) }},
		{"any other", errors.New("no idea"), func(err error) bool { return errors.Is(err, p2p.ErrOwn) }},
		{"one that takes too long", nil, func(err error) bool { return errors.Is(err, p2p.ErrOwn) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b")
				for _, n := range c.nodes {
					n.answer = func(ctx context.Context, _ wire.Ask) (wire.Answer, []byte, error) {
						if tt.err == nil {
							<-ctx.Done()
							return wire.Answer{}, nil, ctx.Err()
						}
						return wire.Answer{}, nil, tt.err
					}
				}
				asked := false
				for id, n := range c.nodes {
					view := n.members.View()
					if first := view.Owners("repository "+host+"/org/app", 1)[0].ID; first == id {
						continue
					}
					asked = true
					_, _, err := n.client.Ask(t.Context(), wire.Ask{Repository: app, Question: wire.Resolve, Reference: "v1"})
					if !tt.expected(err) {
						t.Errorf("the answer is %v", err)
					}
					for _, s := range n.client.Peers().Status() {
						if s.State != "up" && s.State != "self" {
							t.Errorf("%s is %s for what the upstream said", s.ID, s.State)
						}
					}
				}
				if !asked {
					t.Error("nobody asked")
				}
			})
		})
	}
}

func TestADeadMemberDoesNotAnswerQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		c.net.Freeze("a")
		c.net.Freeze("b")
		for id, n := range c.nodes {
			began := time.Now()
			_, _, err := n.client.Ask(t.Context(), wire.Ask{Repository: app, Question: wire.Resolve, Reference: "v1"})
			if took := time.Since(began); !errors.Is(err, p2p.ErrOwn) || took > 2500*time.Millisecond {
				t.Errorf("node %s: %v after %v", id, err, took)
			}
		}
	})
}

func TestWhatIsLearnedAndForgottenReachesOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c")
		a := c.nodes["a"].client
		if err := a.Learn(t.Context(), "b", app, []byte("facts")); err != nil || c.nodes["b"].learned() != "facts" {
			t.Errorf("b has learned %q, error %v", c.nodes["b"].learned(), err)
		}
		a.Tell(app, []byte("news"))
		time.Sleep(time.Second)
		for _, id := range []tracker.ID{"b", "c"} {
			if got := c.nodes[id].learned(); got != "news" {
				t.Errorf("%s was told %q", id, got)
			}
		}
		q := wire.Forget{Host: host, Name: "org/app", Tag: "v1"}
		if told, err := a.Forget(t.Context(), q); told != 2 || err != nil {
			t.Errorf("%d were told, error %v", told, err)
		}
		c.net.Freeze("c")
		began := time.Now()
		told, err := a.Forget(t.Context(), q)
		if took := time.Since(began); told != 1 || err == nil || !strings.Contains(err.Error(), "node-c") || took > 10*time.Second {
			t.Errorf("with one silent %d were told after %v, error %v", told, took, err)
		}
		if got := c.nodes["b"].forgotten(); len(got) != 2 || got[0] != q {
			t.Errorf("b has forgotten %v", got)
		}
	})
}

func TestRecallGathersWhatOthersKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c", "d")
		for id, n := range c.nodes {
			n.answer = func(_ context.Context, q wire.Ask) (wire.Answer, []byte, error) {
				if q.Question != wire.Recall {
					return wire.Answer{}, nil, chunk.ErrNotFound
				}
				return wire.Answer{}, []byte(id), nil
			}
		}
		c.net.Freeze("d")
		var got [][]byte
		began := time.Now()
		c.nodes["a"].client.Recall(t.Context(), app, "", func(facts []byte) { got = append(got, bytes.Clone(facts)) })
		if took := time.Since(began); len(got) != 2 || took > time.Second+10*time.Millisecond {
			t.Errorf("%q after %v", got, took)
		}
	})
}

func TestOrdersReachTheMembersOfAZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c")
		a := c.nodes["a"].client
		brought, err := a.Order(t.Context(), "b", wire.Order{Kind: "echo"}, []byte("hello"))
		if err != nil || string(brought) != "b hello" {
			t.Errorf("b has answered %q, error %v", brought, err)
		}
		if _, err := a.Order(t.Context(), "b", wire.Order{Kind: "dance"}, nil); err == nil || !strings.Contains(err.Error(), "no such order") {
			t.Errorf("an order that is not known: %v", err)
		}
		nowhere := "nowhere"
		if all, some := a.Others(nil), a.Others(&nowhere); len(all) != 2 || len(some) != 0 {
			t.Errorf("there are others %v, nowhere %v", all, some)
		}
		if b := a.Peers().Status()[1]; b.ID != "b" || b.Received == 0 {
			t.Errorf("what came from b is not counted: %+v", b)
		}
		if at := c.nodes["b"].client.Peers().Status()[0]; at.ID != "a" || at.Sent != int64(len("b hello")) {
			t.Errorf("what went to a is not counted: %+v", at)
		}
	})
}
