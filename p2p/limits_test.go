package p2p

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
)

func TestALimiterLetsBytesPassAtItsRate(t *testing.T) {
	const rate = 1 << 20
	for _, tt := range []struct {
		name  string
		limit *Limiter
		sizes []int
		want  time.Duration
	}{
		{"none", nil, []int{1 << 30, 1 << 30}, 0},
		{"of nothing is none", NewLimiter(0), []int{1 << 30, 1 << 30}, 0},
		{"of less than nothing is none", NewLimiter(-1), []int{1 << 30}, 0},
		{"one frame", NewLimiter(rate), []int{wire.MaxBody}, 0},
		{"two frames", NewLimiter(rate), []int{wire.MaxBody, 2 * rate}, 2 * time.Second},
		{"more than a frame at once", NewLimiter(rate), []int{wire.MaxBody + 3*rate}, 3 * time.Second},
		{"nothing", NewLimiter(rate), []int{wire.MaxBody, 0, 0}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				for _, n := range tt.sizes {
					if err := tt.limit.Wait(t.Context(), n); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(began).Round(time.Millisecond); took != tt.want {
					t.Errorf("it took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

func TestWhoWaitsForALimiterMayGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1 << 20)
		if err := l.Wait(t.Context(), wire.MaxBody); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := l.Wait(ctx, wire.MaxBody); !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Wait(short, wire.MaxBody); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("what would take too long ended with %v", err)
		}
	})
}

func TestAHolderRefusesWhomAnOwnerHasReferredToIt(t *testing.T) {
	const much = 20
	lane := &served{server: &Server{client: &Client{}}}
	lane.server.client.sending.Store(much)
	refs := []chunk.Ref{{Blob: "sha256:00", Size: chunk.Size, Total: 2 * chunk.Size}}
	var busy *busyError
	if err := lane.lend(t.Context(), wire.Get{Owner: "owner", Load: much - 1}, refs, nil); !errors.As(err, &busy) || len(busy.referrals) > 0 {
		t.Errorf("whom an owner has referred is told %v, want that the holder is busy", err)
	}
}
