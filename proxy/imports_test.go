package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

// ending is a body at whose end something happens.
type ending func()

func (end ending) Read([]byte) (int, error) {
	end()
	return 0, io.EOF
}

// TestAnImportThatEndsBeforeItIsProven goes on with the proof: nothing is sent again, unless what is
// there is wrong.
func TestAnImportThatEndsBeforeItIsProven(t *testing.T) {
	right := upstreamtest.Random(3*chunk.Size+5, 1)
	wrong := bytes.Clone(right)
	wrong[chunk.Size]++
	d, size := digest.FromBytes(right), int64(len(right))
	repo := ref.Repository{Host: "registry.test", Name: "app"}
	for _, sent := range [][]byte{right, wrong} {
		var store proxy.Store
		s := newStack(t, newOrigin(), true, func(cfg *proxy.Config) { store = cfg.Store })
		release := store.Retain(d, size) // and so the store does not prove it itself meanwhile
		ctx, cancel := context.WithCancel(t.Context())
		err := s.registry.ImportBlob(ctx, repo, d, size, 0, io.MultiReader(bytes.NewReader(sent), ending(cancel)))
		if !errors.Is(err, context.Canceled) || s.registry.Stored(d, size) {
			t.Fatalf("interrupted: %v", err)
		}
		for s.registry.Begun(repo, d, size) < size {
			time.Sleep(time.Millisecond) // what is still on its way to the disk
		}
		if n := s.registry.Begun(ref.Repository{Host: "other.test", Name: "app"}, d, size); n != 0 {
			t.Errorf("for another registry %d bytes are there", n)
		}
		err = s.registry.ImportBlob(t.Context(), repo, d, size, size, strings.NewReader(""))
		if bytes.Equal(sent, right) {
			if err != nil || !s.registry.Stored(d, size) {
				t.Errorf("it does not go on: %v", err)
			}
		} else if !chunk.IsCorrupt(err) || !errors.Is(err, proxy.ErrDropped) || s.registry.Begun(repo, d, size) != 0 {
			t.Errorf("wrong bytes: %v, and %d bytes of them stay", err, s.registry.Begun(repo, d, size))
		}
		release()
	}
}

// TestAnImportIntoAnotherRegistry keeps nothing that a registry has left unproven.
func TestAnImportIntoAnotherRegistry(t *testing.T) {
	p := upstreamtest.Random(3*chunk.Size, 1)
	d, size := digest.FromBytes(p), int64(len(p))
	s := newStack(t, newOrigin(), true)
	part := func(host string, offset int64, body []byte) error {
		return s.registry.ImportBlob(t.Context(), ref.Repository{Host: host, Name: "app"}, d, size, offset, bytes.NewReader(body))
	}
	if err := part("one.test", 0, bytes.Repeat([]byte{7}, chunk.Size)); !errors.Is(err, io.ErrUnexpectedEOF) || chunk.IsCorrupt(err) {
		t.Errorf("a part: %v", err)
	}
	if err := part("two.test", chunk.Size, p[chunk.Size:]); !errors.Is(err, proxy.ErrDropped) {
		t.Errorf("the rest, for another registry: %v", err)
	}
	if err := part("two.test", 0, p); err != nil {
		t.Errorf("all of it: %v", err)
	}
	for !s.registry.Stored(d, size) {
		time.Sleep(time.Millisecond)
	}
}
