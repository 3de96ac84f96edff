package p2p

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// nobody is a transport that reaches no one.
type nobody struct{}

func (nobody) Open(context.Context, tracker.Peer) (Stream, error) {
	return nil, errors.New("nobody is there")
}

func (nobody) Handle(func(tracker.ID, Stream)) {}

// newTestPeers returns what node a knows of b and c, none of whom it reaches, and a
// membership to change.
func newTestPeers(t *testing.T) (*Peers, *tracker.Static) {
	members := tracker.NewStatic(tracker.NewView(tracker.Peer{ID: "a"}, []tracker.Peer{{ID: "b"}, {ID: "c"}}))
	ps := newPeers(nobody{}, members, func(int64, int64) {})
	t.Cleanup(ps.close)
	return ps, members
}

func TestAPeerThatFailsTwiceIsSkippedUntilItIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, _ := newTestPeers(t)
		ps.fail("b")
		if !ps.usable("b") {
			t.Error("it is skipped after one failure")
		}
		time.Sleep(decide.FailuresApart)
		ps.hear("b", 1)
		ps.fail("b")
		if !ps.usable("b") {
			t.Error("it is skipped after failures that were not in a row")
		}
		ps.fail("b")
		if !ps.usable("b") {
			t.Error("it is skipped for failing at two things at once")
		}
		time.Sleep(decide.FailuresApart)
		ps.fail("b")
		for range 100 {
			if ps.usable("b") || !ps.usable("c") {
				t.Fatal("after two failures it is not skipped, or another is")
			}
			time.Sleep(time.Minute)
		}
		ps.hear("b", 1)
		if !ps.usable("b") {
			t.Error("it is skipped though it has answered")
		}
		time.Sleep(time.Minute)
		ps.fail("b")
		time.Sleep(decide.FailuresApart)
		ps.fail("b")
		if ps.usable("b") {
			t.Error("after a recovery it cannot fail again")
		}
	})
}

func TestAPeerThatHasLeftIsNotProbedAndNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, members := newTestPeers(t)
		ps.fail("b")
		time.Sleep(decide.FailuresApart)
		ps.fail("b")
		members.Set(tracker.NewView(tracker.Peer{ID: "a"}, nil))
		time.Sleep(time.Minute)
		ps.mu.Lock()
		probing := ps.get("b").probing
		ps.mu.Unlock()
		if probing || ps.usable("b") {
			t.Errorf("probing is %v, usable is %v", probing, ps.usable("b"))
		}
	})
}

func TestAQuarantineDoublesAndEnds(t *testing.T) {
	ps, _ := newTestPeers(t)
	now := epoch
	ps.now = func() time.Time { return now }
	fault := errors.New("wrong bytes")
	for i, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute} {
		ps.blame("b", fault)
		ps.blame("b", fault) // of the same
		if ps.usable("b") || ps.trusted("b") {
			t.Errorf("quarantine %d: it is used or believed", i)
		}
		now = now.Add(want - time.Second)
		if ps.usable("b") {
			t.Errorf("quarantine %d ends before %v", i, want)
		}
		now = now.Add(time.Second)
		if !ps.usable("b") || !ps.trusted("b") {
			t.Errorf("quarantine %d has not ended after %v", i, want)
		}
	}
	for range 30 {
		ps.blame("b", fault)
		now = now.Add(longQuarantine)
		if !ps.usable("b") {
			t.Fatalf("a quarantine is longer than %v", longQuarantine)
		}
	}
	now = now.Add(strikesFadeIn + time.Second)
	ps.blame("b", fault)
	if now = now.Add(firstQuarantine); !ps.usable("b") {
		t.Error("faults of days ago count")
	}
}

func TestWhoSignsIsBelievedWhileItIsRememberedToHaveBeenAMember(t *testing.T) {
	ps, members := newTestPeers(t)
	now := epoch
	ps.now = func() time.Time { return now }
	ps.tidy()
	members.Set(tracker.NewView(tracker.Peer{ID: "a"}, []tracker.Peer{{ID: "c"}}))
	now = now.Add(time.Hour)
	ps.tidy()
	for id, want := range map[tracker.ID]bool{"b": true, "c": true, "stranger": false} {
		if got := ps.trusted(id); got != want {
			t.Errorf("whether %s is believed is %v", id, got)
		}
	}
	now = now.Add(2 * strikesFadeIn)
	ps.tidy()
	if ps.trusted("b") || !ps.trusted("c") {
		t.Error("who has left days ago is believed, or who is a member is not")
	}
}

func TestAHedgeFollowsWhatAPeersAnswersTook(t *testing.T) {
	timing := Timing{}.WithDefaults()
	for _, tt := range []struct {
		name string
		took []time.Duration // in turn
		n    int
		want time.Duration
	}{
		{"of a stranger", []time.Duration{0}, 0, timing.HedgeMax},
		{"of a short acquaintance", []time.Duration{time.Millisecond}, 7, timing.HedgeMax},
		{"of a fast one", []time.Duration{time.Millisecond}, 100, timing.HedgeMin},
		{"of a slow one", []time.Duration{time.Hour}, 100, timing.HedgeMax},
		{"between", []time.Duration{100 * time.Millisecond}, 100, 200 * time.Millisecond},
		{"seldom slow", append(make([]time.Duration, 31), time.Hour), 64, timing.HedgeMin},
		{"often slow", append(make([]time.Duration, 9), 200*time.Millisecond), 60, 400 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ps, _ := newTestPeers(t)
			for i := range tt.n {
				ps.began("b", tt.took[i%len(tt.took)])
			}
			if got := ps.hedge("b", timing); got != tt.want {
				t.Errorf("a hedge after %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("of one that has changed", func(t *testing.T) {
		ps, _ := newTestPeers(t)
		for i := range 1000 {
			ps.began("b", time.Duration(1000-i)*time.Second)
		}
		for range 64 {
			ps.began("b", 100*time.Millisecond)
		}
		if got := ps.hedge("b", timing); got != 200*time.Millisecond {
			t.Errorf("a hedge after %v, want that of the latest answers", got)
		}
	})
}

func TestRequestsAfterTheEndFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, _ := newTestPeers(t)
		ps.close()
		if err := ps.ping(t.Context(), "b"); !errors.Is(err, errLaneClosed) {
			t.Errorf("a request after the end: %v", err)
		}
		ps.fail("b")
		time.Sleep(decide.FailuresApart)
		ps.fail("b") // nobody is probed
	})
}

// TestAMemberWhoseBytesComeIsNotSilent, though a frame of it takes long.
func TestAMemberWhoseBytesComeIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, _ := newTestPeers(t)
		here, there := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		l, err := newLane(here, ps, "b")
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan struct{})
		go func() { defer close(read); l.read() }()
		head, err := wire.Frame{Type: wire.TypeData, ID: 1, Body: make([]byte, 1<<20)}.Head()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = there.Write(append(wire.Preface[:], head...))
		for range 5 {
			time.Sleep(time.Second)
			_, _ = there.Write(make([]byte, 1000))
			synctest.Wait()
			if silent := ps.now().Sub(ps.lastHeard("b")); silent > noteEvery {
				t.Errorf("it is held to be silent for %v", silent)
			}
		}
		_ = there.Close()
		<-read
	})
}
