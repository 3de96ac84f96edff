// Package libp2p is the [p2p.Transport] between real members: libp2p streams over
// TCP, encrypted, each side proven to be the peer ID that it goes by. It decides
// only who may connect; what is said on a stream is the caller's business.
//
// # What is used of libp2p, and what is not
//
// A connection is libp2p's TCP transport under its upgrader: TLS 1.3, or Noise
// with those that have no TLS, then yamux. TLS comes first because AES has
// hardware and ChaCha20 has not: Noise costs a third more CPU per byte. There is
// no QUIC, which costs two and a half times as much.
//
// The host above that (go-libp2p's Host and Swarm) is left out. It is made for
// strangers: it learns addresses by itself and keeps them beside those that the
// membership gives, waits 5 s before it dials again an address that failed, lets
// a stream's first bytes go before the other side has said that it takes them, and
// prefers of two connections the busier one, which is the dead one when a member
// has just come back. Here the membership knows the addresses and the layer above
// counts failures, so a table of connections is all that is missing.
//
// Connections are not dialled from the port that the node listens on: two members
// that dial each other at once would share one TCP connection that has two clients
// and no server.
//
// # How a stream is opened
//
//  1. The newest connection to the member is asked for a stream, whichever side
//     dialled it. The answer is waited for: an open stream has a reader.
//  2. A connection that gives none within half a second keeps the streams it has
//     and gets no new ones. Nor does one to an address the member has left.
//  3. With no connection left, all the member's addresses are dialled at once and
//     the first that proves to be the member is kept. Many callers share a dial.
//
// Two members that dial each other at once have two connections, and use both. One
// TCP connection is as fast as several until a core cannot encrypt more, so there
// is one for all streams.
//
// # Who may connect
//
// A connection is let in, or dialled, if its peer ID is in the current view of the
// membership; this is checked as soon as the ID is proven, and again for each
// stream. Views flap while members come and go, so connections of a member that
// left are closed only when it stays away for [Config.Grace].
//
// # Limits
//
// Handshakes are bounded in number and in time, and connections per address, so
// that strangers cannot use up the node. What members may open is bounded too, far
// above what they need. A stream's window starts at 256 KiB and grows to 16 MiB
// if the round trip asks for it, as long as all windows together stay under 1 GiB;
// it is what the other side may send ahead, not memory, unless nobody reads.
package libp2p
