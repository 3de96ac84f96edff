package tracker_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

func blob(i int) digest.Digest { return digest.FromString(fmt.Sprint("blob ", i)) }

func wantProviders(t *testing.T, p *tracker.Providers, d digest.Digest, want ...tracker.ID) {
	t.Helper()
	if got := p.Of(d); !slices.Equal(got, want) {
		t.Errorf("providers are %v, want %v", got, want)
	}
}

func TestWhoAnnouncedLastIsTheFirstProvider(t *testing.T) {
	p := tracker.NewProviders(10, time.Hour)
	wantProviders(t, p, blob(1))
	p.Announce(blob(1), "a")
	p.Announce(blob(1), "b")
	p.Announce(blob(2), "c")
	wantProviders(t, p, blob(1), "b", "a")
	p.Announce(blob(1), "a")
	wantProviders(t, p, blob(1), "a", "b")
	wantProviders(t, p, blob(2), "c")
}

func TestAProviderWithdraws(t *testing.T) {
	p := tracker.NewProviders(10, time.Hour)
	p.Announce(blob(1), "a")
	p.Announce(blob(1), "b")
	p.Withdraw(blob(1), "a")
	p.Withdraw(blob(2), "a")
	wantProviders(t, p, blob(1), "b")
	p.Withdraw(blob(1), "b")
	wantProviders(t, p, blob(1))
}

func TestAMemberThatLeftProvidesNothing(t *testing.T) {
	p := tracker.NewProviders(10, time.Hour)
	for i := range 5 {
		p.Announce(blob(i), "a")
	}
	p.Announce(blob(0), "b")
	p.Forget("a")
	wantProviders(t, p, blob(0), "b")
	for i := 1; i < 5; i++ {
		wantProviders(t, p, blob(i))
	}
}

func TestAnAnnouncementExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := tracker.NewProviders(10, time.Minute)
		p.Announce(blob(1), "a")
		time.Sleep(40 * time.Second)
		p.Announce(blob(1), "b")
		wantProviders(t, p, blob(1), "b", "a")
		time.Sleep(20 * time.Second)
		wantProviders(t, p, blob(1), "b")
		p.Announce(blob(1), "a")
		time.Sleep(40 * time.Second)
		wantProviders(t, p, blob(1), "a")
		time.Sleep(20 * time.Second)
		wantProviders(t, p, blob(1))
	})
}

func TestTheBlobsAnnouncedLongestAgoAreDropped(t *testing.T) {
	p := tracker.NewProviders(3, time.Hour)
	for i := range 3 {
		p.Announce(blob(i), "a")
	}
	p.Announce(blob(0), "b")
	p.Announce(blob(3), "a")
	wantProviders(t, p, blob(0), "b", "a")
	wantProviders(t, p, blob(1))
	wantProviders(t, p, blob(2), "a")
	wantProviders(t, p, blob(3), "a")
}

func TestExpiredBlobsMakeNoRoomNecessary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := tracker.NewProviders(2, time.Minute)
		p.Announce(blob(1), "a")
		time.Sleep(time.Minute)
		p.Announce(blob(2), "a")
		p.Announce(blob(3), "a")
		wantProviders(t, p, blob(1))
		wantProviders(t, p, blob(2), "a")
		wantProviders(t, p, blob(3), "a")
	})
}

func TestOneBlobHasABoundedNumberOfProviders(t *testing.T) {
	p := tracker.NewProviders(3, time.Hour)
	for i := range 100 {
		p.Announce(blob(1), tracker.ID(fmt.Sprint(i)))
	}
	got := p.Of(blob(1))
	if len(got) != 64 || got[0] != "99" || got[63] != "36" {
		t.Errorf("%d providers: %v", len(got), got)
	}
}

func TestARecordOfNothingHoldsOneBlob(t *testing.T) {
	p := tracker.NewProviders(0, time.Hour)
	p.Announce(blob(1), "a")
	p.Announce(blob(2), "a")
	wantProviders(t, p, blob(1))
	wantProviders(t, p, blob(2), "a")
}

func TestProvidersAreUsedTogether(t *testing.T) {
	p := tracker.NewProviders(8, time.Hour)
	var all sync.WaitGroup
	for g := range 8 {
		id := tracker.ID(fmt.Sprint(g))
		all.Go(func() {
			for i := range 500 {
				p.Announce(blob(i%16), id)
				p.Of(blob(i % 7))
				p.Withdraw(blob(i%5), id)
			}
			p.Forget(id)
		})
	}
	all.Wait()
	for i := range 16 {
		wantProviders(t, p, blob(i))
	}
}
