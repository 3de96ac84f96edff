package p2p_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func TestWhatComesWholeIsReadByTheOwnerOfItsFirstStripe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c")
		m := c.blob(12<<20, "b", "c", "a")
		for _, reader := range []*node{c.nodes["a"], c.nodes["c"]} {
			if err := c.get(t.Context(), reader.client.First(app), m); err != nil {
				t.Errorf("node %s: %v", reader.id, err)
			}
		}
		if err := c.get(t.Context(), c.nodes["b"].client.First(app), m); !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("the owner asks another: %v", err)
		}
		if n := c.nodes["b"].fetches(); n != 2 {
			t.Errorf("the owner was asked %d times, want twice", n)
		}
		if sent := c.registry.bytes(); sent != m.Size() {
			t.Errorf("%d bytes left the upstream, the blob has %d", sent, m.Size())
		}
	})
}

func TestAFirstOwnerIsWaitedForAsLongAsItSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		m := c.blob(8<<20, "b")
		goOn := c.registry.stall()
		time.AfterFunc(30*time.Second, goOn)
		src := c.nodes["a"].client.First(app)
		if err := c.get(t.Context(), src, m); err != nil {
			t.Errorf("after 30 s of progress: %v", err)
		}
		c.net.Freeze("b")
		began := time.Now()
		err := c.get(t.Context(), src, m)
		if took := time.Since(began); err == nil || took > 2500*time.Millisecond {
			t.Errorf("a silent one was waited for %v, error %v", took, err)
		}
	})
}
