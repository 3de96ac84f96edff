// Package p2p moves chunks between the members of a cluster, and questions to the
// members that ask them for all. It decides whom to ask, when to stop waiting and
// whom to believe; how bytes travel is the business of a [Transport], what they mean
// that of package wire, and who is a member that of package tracker.
//
// # How a cold blob gets into a cluster
//
// A blob is placed by stripes. A node that misses chunks of a stripe asks the
// stripe's owner, which every node computes alike. The owner answers from what it
// has, else from a provider, else from the upstream: once, however many wait. So
// all members pull different parts of a cold image at the same time, and each part
// crosses the registry's link once.
//
// There are no chains. A request is made to an owner, who may ask providers and the
// upstream, or to a holder, who answers from what it has. Two nodes with different
// views of the membership cost a second copy at worst.
//
// # Waiting is not failure
//
// An owner that waits says so several times a second, and for as long as it does
// the asker waits too: to ask the registry for what somebody fetches already is how
// a crowd on a thin link collapses. Only silence and errors count against a member.
// Whom to ask next is decided by a pursuit, a state machine with neither clock nor
// goroutine of its own: after some silence also the next owner, and after the peer
// budget the upstream.
//
// # Fan-out
//
// An owner sends one stripe to two members at a time; the others wait until somebody
// has it, and are referred to it, one to each at a time. Who has got it from another
// tells the owner, and is one more to be referred to. Load spreads like a tree.
//
// # What one member may cost another
//
// Whoever breaks the protocol is cut off. Lanes of a member, requests under way on
// them and chunks that are being sent have bounds, of each member and of all, and
// each kind of work has its own, so that no two members wait for each other for
// ever: an owner's work may wait for a holder's, and a holder's for nobody's. A chunk
// that nobody asked for ends the lane, and one that is compressed becomes no larger
// than a chunk is.
//
// # What is believed
//
// Every chunk comes with a [wire.Claim], signed by the member that fetched it from
// the upstream or has proven its blob, unless the chunk is a whole blob. Bytes that
// do not match their claim are the sender's fault. When a blob does not match its
// digest although every chunk matched its claim, what the upstream sends next is
// compared with the claims, and the fault is the signer's ([Claims]). Whoever is at
// fault is not asked nor believed for a while ([Peers]).
//
// A member that has all of a blob also tells the digests of its chunks, for others to find
// these in what they have. That is its word too, but not a claim: what is found so is not lent.
package p2p
