// Package wire is how members of a cluster talk on a lane: what a frame looks like
// and what is in it. It does no I/O of its own and decides nothing.
//
// A lane is a stream of bytes. Each side first sends a [Preface], which says how
// much of the protocol it knows; both then speak the lower version. What follows is
// frames in any order, each of which begins with 12 bytes:
//
//	 0       1               5               8               12
//	┌──────┬───────────────┬───────────────┬───────────────┐
//	│ type │ request (u32) │ header (u24)  │ body (u32)    │  all big-endian
//	└──────┴───────────────┴───────────────┴───────────────┘
//
// then as many bytes of header and of body as it says. The header is a message in
// the encoding of Protocol Buffers, of which a reader skips the fields that it does
// not know; the body is bytes of a chunk or a manifest. A reader also skips frames
// of types that it does not know: adjacent versions understand each other.
//
// Requests are pipelined: the side that opened the lane numbers them, and any
// number may be under way, up to [MaxPending]. The other side answers each with
// frames that carry its number, interleaved with those of others, of which the last
// is one that [Type.Last] says is.
//
// Every size is checked before memory is taken for it. A frame that breaks a limit
// is an error, after which the lane is of no use.
package wire
