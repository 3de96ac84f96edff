package decide

import "github.com/granary-oci/granary/chunkstore/chunk"

const (
	aheadPerMember = 2 << 20
	maxAhead       = 64 << 20
)

// Ahead returns how many bytes from its position on a reader has fetched of a cold blob, in a zone of so many
// members: the more of them pull at the same time, the more kinds of stripes it takes for each to have some that
// others want. Few members gain nothing by it, and where their registry is no faster than their links all stripes
// that it sends at once arrive late.
func Ahead(members int) int64 { return min(int64(members)*aheadPerMember, maxAhead) }

// FanOut returns how many members have a stripe from one member at a time, in a zone of so many. With fewer each of them has it
// sooner; with more the way to the last of many is shorter.
func FanOut(members int) int {
	if members >= 500 {
		return 3
	}
	return 2
}

const (
	// manyMembers is no number that clusters have often: where one of so many is restarted, all owners change twice.
	manyMembers = 36
	manyStripes = 128 // of a blob
)

// StripeSize returns the size of the pieces in which a blob of total bytes is placed on the members of a zone, in bytes. The
// smaller they are the sooner each member has something to send to others, but each is a request to the registry, and
// some messages between members: many members have them as small as makes no more than 128 of a blob, a chunk at
// least and no more than [chunk.StripeSize]; few have pieces of that size. Members that see different numbers of members take
// different ones for owners, which costs a second copy, as any other difference of views.
func StripeSize(total int64, members int) int64 {
	size := int64(chunk.StripeSize)
	for members >= manyMembers && size > chunk.Size && total <= manyStripes*size/2 {
		size /= 2
	}
	return size
}

// OtherStripeSize returns the size that stripes have with fewer or more members, where as many as makes the difference
// may have come or gone lately; else that of [StripeSize]. By it is found what was placed before.
func OtherStripeSize(total int64, members int) int64 {
	switch {
	case members >= manyMembers && members < manyMembers*3/2:
		return StripeSize(total, manyMembers-1)
	case members < manyMembers && members > manyMembers*2/3:
		return StripeSize(total, manyMembers)
	}
	return StripeSize(total, members)
}
