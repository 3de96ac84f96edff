package tracker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

func members(n int) []tracker.Peer {
	var peers []tracker.Peer
	for i := range n {
		peers = append(peers, tracker.Peer{ID: tracker.ID(fmt.Sprintf("12D3KooWMember%d", i)), Weight: 1})
	}
	return peers
}

func view(peers ...tracker.Peer) *tracker.View { return tracker.NewView(peers[0], peers) }

func ids(peers []tracker.Peer) (ids []tracker.ID) {
	for _, p := range peers {
		ids = append(ids, p.ID)
	}
	return ids
}

func owner(v *tracker.View, blob digest.Digest, stripe int) tracker.ID {
	return v.Owners(tracker.StripeKey(blob, stripe), 1)[0].ID
}

// shares counts the stripes of a blob that each member owns.
func shares(v *tracker.View, blob digest.Digest, stripes int) map[tracker.ID]int {
	owned := make(map[tracker.ID]int)
	for i := range stripes {
		owned[owner(v, blob, i)]++
	}
	return owned
}

func TestEveryMemberNamesTheSameOwners(t *testing.T) {
	peers := members(20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range peers {
		peers[i].Weight = 1 + i%4
	}
	first := view(peers...)
	for range 50 {
		r.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
		v := view(peers...)
		for s := range 50 {
			key := tracker.StripeKey(blob(s), s)
			if a, b := ids(first.Owners(key, 5)), ids(v.Owners(key, 5)); !slices.Equal(a, b) {
				t.Fatalf("%s says that %s is owned by %v, %s says %v", first.Self().ID, key, a, v.Self().ID, b)
			}
		}
	}
}

func TestOwnersAreDistinctAndAsManyAsAskedFor(t *testing.T) {
	v := view(members(5)...)
	for n := range 8 {
		owners := ids(v.Owners("key", n))
		slices.Sort(owners)
		if len(slices.Compact(owners)) != min(n, 5) {
			t.Errorf("%d owners: %v", n, owners)
		}
	}
	if got := v.Owners("key", 2); !slices.Equal(ids(got), ids(v.Owners("key", 5))[:2]) {
		t.Error("the first owners depend on how many are asked for")
	}
}

func TestStripesAreBalanced(t *testing.T) {
	const stripes, n = 10_000, 10
	v := view(members(n)...)
	for b := range 100 {
		owned := shares(v, blob(b), stripes)
		for _, p := range v.Peers() {
			if k := owned[p.ID]; k < stripes/n*8/10 || k > stripes/n*12/10 {
				t.Errorf("%s owns %d stripes of blob %d, of %d", p.ID, k, b, stripes)
			}
		}
	}
}

// Images are small: what counts for a cold pull is the member that is asked for most.
func TestTheLargestOwnerOfAnImageIsBearable(t *testing.T) {
	const stripes, n, blobs = 46, 8, 1000
	v := view(members(n)...)
	var largest []int
	for b := range blobs {
		most := 0
		for _, k := range shares(v, blob(b), stripes) {
			most = max(most, k)
		}
		largest = append(largest, most)
	}
	slices.Sort(largest)
	median, worst := largest[blobs/2], largest[blobs-1]
	t.Logf("of %d stripes on %d members the largest owner has %d in the median, %d at p99, %d at most; an equal share is %.1f",
		stripes, n, median, largest[blobs*99/100], worst, float64(stripes)/n)
	if median > 2*stripes/n || worst > stripes/2 {
		t.Errorf("the largest owner has %d of %d stripes in the median, %d at most", median, stripes, worst)
	}
}

func TestOnlyAMembersOwnShareMovesWithIt(t *testing.T) {
	const stripes, n = 10_000, 10
	all := members(n)
	with := view(all...)
	for gone := 1; gone < n; gone++ {
		without := view(slices.Delete(slices.Clone(all), gone, gone+1)...)
		moved := 0
		for i := range stripes {
			before, after := owner(with, blob(gone), i), owner(without, blob(gone), i)
			if before == after {
				continue
			}
			moved++
			if before != all[gone].ID {
				t.Fatalf("stripe %d moved from %s to %s when %s left", i, before, after, all[gone].ID)
			}
			if heir := with.Owners(tracker.StripeKey(blob(gone), i), 2)[1].ID; after != heir {
				t.Fatalf("stripe %d went to %s, and not to its second owner %s", i, after, heir)
			}
		}
		if moved < stripes/n*8/10 || moved > stripes/n*12/10 {
			t.Errorf("%d stripes of %d moved with one of %d members", moved, stripes, n)
		}
	}
}

func TestAMemberOfTwiceTheWeightOwnsTwice(t *testing.T) {
	const stripes, n = 50_000, 9
	peers := members(n)
	peers[3].Weight = 2
	owned := shares(view(peers...), blob(1), stripes)
	for _, p := range peers {
		want := stripes / (n + 1) * p.Weight
		if k := owned[p.ID]; k < want*9/10 || k > want*11/10 {
			t.Errorf("%s of weight %d owns %d stripes, want about %d", p.ID, p.Weight, k, want)
		}
	}
}

func TestAWeightBeyondTheMaximumIsTheMaximum(t *testing.T) {
	peers := members(2)
	peers[0].Weight, peers[1].Weight = tracker.MaxWeight, 1<<40
	if k := shares(view(peers...), blob(1), 10_000)[peers[1].ID]; k < 4500 || k > 5500 {
		t.Errorf("it owns %d stripes of 10000, beside one of the maximum", k)
	}
}

func TestWhatAMemberOwnsMovesOnlyToItWhenItsWeightGrows(t *testing.T) {
	peers := members(6)
	before := view(peers...)
	heavier := slices.Clone(peers)
	heavier[2].Weight = 3
	after := view(heavier...)
	for i := range 5000 {
		if a, b := owner(before, blob(1), i), owner(after, blob(1), i); a != b && b != peers[2].ID {
			t.Fatalf("stripe %d moved from %s to %s", i, a, b)
		}
	}
}

func TestWhoDrainsOrHasNoWeightOwnsNothing(t *testing.T) {
	peers := members(4)
	peers[1].Draining = true
	peers[2].Weight = 0
	v := view(peers...)
	for i := range 1000 {
		key := tracker.StripeKey(blob(1), i)
		for _, owners := range [][]tracker.Peer{v.Owners(key, 4), v.Keepers(key, 4)} {
			got := ids(owners)
			slices.Sort(got)
			if !slices.Equal(got, []tracker.ID{peers[0].ID, peers[3].ID}) {
				t.Fatalf("owners are %v", got)
			}
		}
	}
	for i := range peers {
		peers[i].Draining = true
	}
	if got := view(peers...).Owners("key", 3); len(got) != 0 {
		t.Errorf("when all drain, %v own", got)
	}
}

func TestOwnersAreOfTheOwnZoneAndKeepersOfAll(t *testing.T) {
	peers := members(9)
	for i := range peers {
		peers[i].Zone = []string{"a", "b", ""}[i%3]
	}
	for _, self := range peers {
		v := tracker.NewView(self, peers)
		for i := range 100 {
			key := tracker.StripeKey(blob(1), i)
			owners := v.Owners(key, 9)
			if len(owners) != 3 || slices.ContainsFunc(owners, func(p tracker.Peer) bool { return p.Zone != self.Zone }) {
				t.Fatalf("owners in zone %q are %v", self.Zone, owners)
			}
			if got, want := ids(v.Keepers(key, 9)), ids(view(peers...).Keepers(key, 9)); len(got) != 9 || !slices.Equal(got, want) {
				t.Fatalf("keepers differ between zones: %v and %v", got, want)
			}
		}
	}
}

func TestANodeAloneOwnsEverything(t *testing.T) {
	v := view(members(1)...)
	if !v.Alone() {
		t.Error("it is not alone")
	}
	for i := range 100 {
		if got := v.Owners(tracker.StripeKey(blob(i), i), 3); len(got) != 1 || got[0].ID != v.Self().ID {
			t.Fatalf("owners are %v", got)
		}
	}
}

func TestAViewHasItselfAndNobodyTwice(t *testing.T) {
	peers := members(3)
	self := tracker.Peer{ID: "self", Name: "mine", Weight: 1}
	twin := peers[1]
	twin.Name = "twin"
	v := tracker.NewView(self, append(peers, twin, tracker.Peer{ID: "self", Name: "other"}))
	if got := ids(v.Peers()); !slices.Equal(got, append(ids(peers), "self")) {
		t.Errorf("peers are %v", got)
	}
	if p, ok := v.Peer("self"); !ok || p.Name != "mine" {
		t.Errorf("self is %+v, %v", p, ok)
	}
	if p, _ := v.Peer(twin.ID); p.Name != "" {
		t.Errorf("the second of one ID counts: %+v", p)
	}
	if _, ok := v.Peer("nobody"); ok {
		t.Error("nobody is a peer")
	}
}

// Placement is part of the protocol: versions that differ fetch everything twice.
func TestPlacementIsTheSameInAllVersions(t *testing.T) {
	peers := members(8)
	for i := range peers {
		peers[i].ID = tracker.ID(fmt.Sprintf("12D3KooWGolden%d", i))
		peers[i].Weight = 1 + i/4
	}
	v := view(peers...)
	for key, want := range map[string]string{
		tracker.StripeKey("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0):    "27561430",
		tracker.StripeKey("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 1):    "67340152",
		tracker.StripeKey("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 1000): "47260513",
		"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad":                          "54712360",
		"registry.example/library/app": "46275310",
		"":                             "47610532",
	} {
		got := ""
		for _, p := range v.Owners(key, 8) {
			got += string(p.ID[len(p.ID)-1])
		}
		if got != want {
			t.Errorf("%q is owned by %s in order, want %s", key, got, want)
		}
	}
}

func TestAStaticMembershipTellsOfChanges(t *testing.T) {
	one, two := view(members(1)...), view(members(2)...)
	s := tracker.NewStatic(one)
	changed := s.Changed()
	select {
	case <-changed:
		t.Error("it changed before it was set")
	default:
	}
	s.Set(two)
	<-changed
	if s.View() != two {
		t.Error("the view is not what was set")
	}
}
