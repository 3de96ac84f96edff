// Package gossip keeps the membership of a cluster with hashicorp/memberlist, an
// implementation of SWIM (Das, Gupta and Motivala, 2002). It gives the views of
// package tracker, and carries what members tell each other of complete blobs. It
// decides nothing about who owns what, and moves no chunk.
//
// # Who is a member
//
// Whoever has a secret of the cluster. Each is stretched to an AES-256 key; the
// first encrypts, all decrypt, so that secrets can be rotated: the new one is added
// everywhere, then made the first everywhere, then the old one is dropped.
//
// A member's name in memberlist is its peer ID and the time it was started at, so
// that a node which was killed is back at once, be it at another address: memberlist
// would hold a name of the dead against it for 10 to 20 seconds. Of several members
// with one peer ID the one that was started last is the peer. What else is known of
// it travels as the metadata of its name; one whose metadata makes no sense is a
// member, and no peer.
//
// # Finding each other
//
// Addresses to join are resolved and tried until they are members, often while the
// node is alone and every half minute afterwards. So are members that were lost,
// for a day. The second is what makes one cluster of the halves of a partition that
// have given each other up.
//
// # Who holds what
//
// A node tells of its complete blobs to the [tracker.Copies] keepers of their
// digests: in batches, again to new keepers when the membership changes, and of all
// its blobs every [Refresh]. What it tells is a hint and may be late or lost: an
// announcement and a withdrawal in quick succession may even change places. The
// receiver keeps hints for a limited time, and strikes off who has not got the blob.
package gossip
