package proxy

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// inCompany are members who are there.
type inCompany struct{ Peers }

func (inCompany) Alone() bool { return false }

// busy is a source that has nothing for the first so many times that it is asked, and then a chunk at a time.
type busy struct{ asked, until int }

func (b *busy) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	if b.asked++; b.asked <= b.until {
		return nil, chunk.ErrNotFound
	}
	return bytes.Repeat([]byte{byte(ref.Index())}, int(ref.Size)), nil
}

// broken is a source that always fails in the same way.
type broken struct{ err error }

func (f broken) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, f.err }

func TestWhoIsBusyIsAskedAgain(t *testing.T) {
	dead := &upstream.NoAnswerError{Subject: "GET blob", Err: errors.New("connection refused")}
	m, err := chunk.Grid(digest.FromString("blob"), 3*chunk.Size)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		busy     int
		upstream error
		asked    int // of members
		given    int
	}{
		{"a member that is busy once", 1, dead, 4, 3},
		{"one that is busy twice", 2, dead, 5, 3},
		{"one that never has it", 1 << 20, dead, 3, 0},
		{"an upstream that answers", 1, chunk.ErrNotFound, 1, 0},
		{"one that refuses", 1, chunk.ErrDenied, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				held := &busy{until: c.busy}
				src := patient{chunk.First(held, broken{c.upstream}), held, inCompany{}}
				given := 0
				err := src.GetRun(t.Context(), []chunk.Ref{m.At(0), m.At(1), m.At(2)}, func(ref chunk.Ref, p []byte) error {
					if ref.Index() != given || p[0] != byte(given) {
						t.Errorf("chunk %d comes as number %d", ref.Index(), given)
					}
					given++
					return nil
				})
				if given != c.given || held.asked != c.asked || (err == nil) != (c.given == 3) {
					t.Errorf("%d chunks, members asked %d times, %v", given, held.asked, err)
				}
			})
		})
	}
}
