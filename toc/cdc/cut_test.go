package cdc

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// noise returns n bytes, at most 4 MiB, the same for everybody: SHA-256 of the numbers from 0 on,
// big-endian, in 8 bytes.
func noise(n int) []byte { return slices.Clone(noisy()[:n]) }

var noisy = sync.OnceValue(func() (p []byte) {
	for i := range uint64(4 << 20 / sha256.Size) {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, i))
		p = append(p, sum[:]...)
	}
	return p
})

func sizesOf(p []byte) (sizes []int) {
	for len(p) > 0 {
		n := Cut(p)
		sizes = append(sizes, n)
		p = p[n:]
	}
	return sizes
}

// TestCutIsFrozen has the chunks of known bytes. If it fails, the code is wrong: sites that
// run another version cut like this.
func TestCutIsFrozen(t *testing.T) {
	var lines []byte
	for i := range 100_000 {
		lines = fmt.Appendln(lines, i)
	}
	for _, c := range []struct {
		name string
		p    []byte
		want []int
	}{
		{"nothing", nil, nil},
		{"a byte", noise(1), []int{1}},
		{"the smallest size", noise(MinSize), []int{MinSize}},
		{"a byte more", noise(MinSize + 1), []int{MinSize + 1}},
		{"zeros", make([]byte, 600_000), []int{MaxSize, MaxSize, 600_000 - 2*MaxSize}},
		{"the largest size of zeros", make([]byte, MaxSize), []int{MaxSize}},
		{"the largest size of noise", noise(MaxSize), []int{143034, 72248, 46862}},
		{"noise", noise(1 << 20), []int{143034, 72248, 74752, 67472, 78746, 73737, 50329, 53623, 85977, 72259, 23287, 67068, 78942, 77922, 29180}},
		{"lines with numbers", lines, []int{22303, 69488, 102068, 39247, 67726, 73892, 95269, 110243, 8654}},
	} {
		if got := sizesOf(c.p); !slices.Equal(got, c.want) {
			t.Errorf("%s: cut into %v instead of %v", c.name, got, c.want)
		}
	}
}

// TestSizes holds chunks of anything to their bounds, and the average of noise to what
// the sizes are said to be.
func TestSizes(t *testing.T) {
	p := noise(4 << 20)
	sizes := sizesOf(p)
	for i, n := range sizes {
		if n > MaxSize || n < MinSize && i < len(sizes)-1 {
			t.Errorf("chunk %d of %d has %d bytes", i, len(sizes), n)
		}
	}
	if mean := len(p) / len(sizes); mean < NormalSize || mean > NormalSize*3/2 {
		t.Errorf("the average is %d", mean)
	}
}

// TestChangesStayWhereTheyAre inserts and deletes bytes here and there: chunks behind are the
// same again soon.
func TestChangesStayWhereTheyAre(t *testing.T) {
	p := noise(3 << 20)
	had := make(map[string]bool)
	for rest := p; len(rest) > 0; {
		n := Cut(rest)
		had[string(rest[:n])] = true
		rest = rest[n:]
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		at, n := r.IntN(len(p)), 1+r.IntN(1000)
		changed := slices.Insert(slices.Clone(p), at, noise(n)...)
		if r.IntN(2) == 0 {
			changed = slices.Delete(slices.Clone(p), at, min(at+n, len(p)))
		}
		fresh := 0
		for len(changed) > 0 {
			n := Cut(changed)
			if !had[string(changed[:n])] {
				fresh++
			}
			changed = changed[n:]
		}
		if fresh > 6 {
			t.Errorf("%d bytes at %d change %d chunks of %d", n, at, fresh, len(had))
		}
	}
}

// Places in noise at which a chunk ends that is of at least the normal size, and one that is not.
const (
	latePlace  = 143034
	earlyPlace = latePlace + 72248 + 74752 + 67472 + 78746 + 73737 + 50329
)

// TestPlacesDependOn64Bytes: what is before them does not move where a chunk ends.
func TestPlacesDependOn64Bytes(t *testing.T) {
	for _, c := range []struct{ place, lead, size int }{
		{earlyPlace, hashed, MinSize},
		{earlyPlace, hashed, MinSize + 1},
		{earlyPlace, hashed, NormalSize - 1},
		{earlyPlace, 10_000, MinSize + 5000},
		{latePlace, hashed, NormalSize},
		{latePlace, hashed, NormalSize + hashed},
		{latePlace, 1000, NormalSize + 1000},
		{latePlace, hashed, MaxSize - 1},
	} {
		p := append(make([]byte, c.size-c.lead), noise(4 << 20)[c.place-c.lead:]...)
		if got := Cut(p); got != c.size {
			t.Errorf("%d bytes before %d: the chunk has %d bytes instead of %d", c.lead, c.place, got, c.size)
		}
	}
}

func FuzzCut(f *testing.F) {
	f.Add([]byte("granary"), 100_000)
	f.Fuzz(func(t *testing.T, seed []byte, n int) {
		if len(seed) == 0 || n < 0 || n > 300_000 {
			return
		}
		p := bytes.Repeat(seed, n/len(seed)+1)
		sizes := sizesOf(p)
		total := 0
		for i, size := range sizes {
			total += size
			if size > MaxSize || size < MinSize && i < len(sizes)-1 {
				t.Fatalf("chunk %d of %d has %d bytes", i, len(sizes), size)
			}
		}
		if total != len(p) {
			t.Fatalf("chunks of %d bytes have %d", len(p), total)
		}
	})
}
