package decide

const (
	aheadPerMember = 2 << 20
	maxAhead       = 64 << 20
)

// Ahead returns how many bytes from its position on a reader has fetched of a cold blob, in a zone of so many
// members: the more of them pull at the same time, the more kinds of stripes it takes for each to have some that
// others want. Few members gain nothing by it, and where their registry is no faster than their links all stripes
// that it sends at once arrive late.
func Ahead(members int) int64 { return min(int64(members)*aheadPerMember, maxAhead) }
