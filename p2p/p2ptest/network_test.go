package p2ptest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/tracker"
)

// connect returns both ends of a stream from a to b.
func connect(t *testing.T, n *p2ptest.Network) (here, there p2p.Stream) {
	t.Helper()
	opened := make(chan p2p.Stream, 1)
	n.Node("b").Handle(func(from tracker.ID, s p2p.Stream) {
		if from != "a" {
			t.Errorf("a stream from %q, want a", from)
		}
		opened <- s
	})
	here, err := n.Node("a").Open(t.Context(), tracker.Peer{ID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	return here, <-opened
}

func TestBytesArriveInOrderAtTheLinksRate(t *testing.T) {
	const rate, latency = 1 << 20, 10 * time.Millisecond
	for _, tt := range []struct {
		name     string
		up, down int64
	}{{"of the sender", rate, 0}, {"of the receiver", 0, rate}, {"of both", rate, rate}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := p2ptest.NewNetwork()
				defer n.Close()
				here, there := connect(t, n)
				n.SetLatency(latency)
				n.SetLink("a", tt.up, 0)
				n.SetLink("b", 0, tt.down)
				sent := bytes.Repeat([]byte("granary!"), 4*rate/8)
				began := time.Now()
				go func() {
					here.Write(sent[:3])
					here.Write(sent[3:])
				}()
				got := make([]byte, len(sent))
				if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, sent) {
					t.Fatalf("other bytes arrived, error %v", err)
				}
				took := time.Since(began)
				if least := 4*time.Second + latency; took < least-time.Microsecond || took > least+200*time.Millisecond {
					t.Errorf("4 s of a link took %v", took)
				}
				if in, _ := n.Traffic("b"); in != int64(len(sent)) {
					t.Errorf("b received %d bytes, want %d", in, len(sent))
				}
			})
		})
	}
}

func TestWhatANodeIsStruckByIsSeenAtTheOtherEnd(t *testing.T) {
	tests := []struct {
		name   string
		strike func(n *p2ptest.Network, there p2p.Stream)
		want   error // of a read; nil is silence
	}{
		{"it freezes", func(n *p2ptest.Network, _ p2p.Stream) { n.Freeze("b") }, nil},
		{"it is cut off", func(n *p2ptest.Network, _ p2p.Stream) { n.Cut("b", "a") }, nil},
		{"it closes the stream", func(_ *p2ptest.Network, there p2p.Stream) { there.Close() }, io.EOF},
		{"it closes the stream while it is cut off", func(n *p2ptest.Network, there p2p.Stream) {
			n.Cut("a", "b")
			there.Close()
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := p2ptest.NewNetwork()
				defer n.Close()
				here, there := connect(t, n)
				tt.strike(n, there)
				go there.Write([]byte("x"))
				here.SetReadDeadline(time.Now().Add(time.Minute))
				want := tt.want
				if want == nil {
					want = os.ErrDeadlineExceeded
				}
				if _, err := here.Read(make([]byte, 1)); !errors.Is(err, want) {
					t.Errorf("a read returned %v, want %v", err, want)
				}
			})
		})
	}
	t.Run("it dies", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := p2ptest.NewNetwork()
			defer n.Close()
			here, _ := connect(t, n)
			n.Kill("b")
			if _, err := here.Read(make([]byte, 1)); err == nil {
				t.Error("a stream outlives its node")
			}
			if _, err := n.Node("a").Open(t.Context(), tracker.Peer{ID: "b"}); !errors.Is(err, p2ptest.ErrRefused) {
				t.Errorf("a dead node was opened to: %v", err)
			}
			n.Revive("b")
			if s, err := n.Node("a").Open(t.Context(), tracker.Peer{ID: "b"}); err != nil {
				t.Errorf("a node that is back was not opened to: %v", err)
			} else {
				s.Close()
			}
		})
	})
}

func TestWhatWasUnderWayArrivesAfterAFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork()
		defer n.Close()
		here, there := connect(t, n)
		n.Freeze("b")
		here.Write([]byte("x"))
		go func() {
			time.Sleep(time.Hour)
			n.Thaw("b")
		}()
		p := make([]byte, 1)
		if _, err := there.Read(p); err != nil || p[0] != 'x' {
			t.Errorf("read %q, error %v", p, err)
		}
		n.Freeze("b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Node("a").Open(ctx, tracker.Peer{ID: "b"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a frozen node was opened to: %v", err)
		}
	})
}

func TestAWriterWaitsForItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork()
		defer n.Close()
		here, _ := connect(t, n)
		here.SetWriteDeadline(time.Now().Add(time.Second))
		written, err := here.Write(make([]byte, 64<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || written > 4<<20 {
			t.Errorf("%d bytes were written that nobody reads, error %v", written, err)
		}
	})
}

func TestWhatANodeSendsIsAltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork()
		defer n.Close()
		here, there := connect(t, n)
		n.Alter("a", func(p []byte) { p[0] = 'y' })
		sent := []byte("x")
		here.Write(sent)
		p := make([]byte, 1)
		if there.Read(p); p[0] != 'y' || sent[0] != 'x' {
			t.Errorf("%q was sent and %q arrived", sent, p)
		}
	})
}
