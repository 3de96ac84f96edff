// Package dht is a [tracker.Tracker] for sites that are no members of one cluster:
// who has which blob, by go-libp2p-kad-dht over a host that it is given.
//
// # What a record says
//
// That a node of another site had all of a blob when it said so. The key is the
// blob's digest, sha256 or sha512, as the multihash of a CIDv1 of raw bytes. There are
// records of blobs alone, never of chunks, of which there are a thousand times more.
// A record is a hint, and vouches for nothing: what the provider then sends is
// checked by the digest.
//
// A site tells the 4 sites that are nearest to the digest, of those that can be dialled
// (servers); it answers from what it has itself, too, and speaks for itself alone. It
// tells each again after 8 hours, and a record ends after 24. Whether others are
// the nearest by now it sees every half hour. Records live in memory.
//
// # How it is taken back
//
// Kademlia does not know withdrawals. Here a record whose one address is
// /dns/withdrawn.invalid takes back the one before, and the same under the site's own
// ID all of its records ([Tracker.Leave]). They go to those who were told the
// contrary. Who cannot be reached is told later, until the record has ended anyway; a
// site that crashes is named until then.
//
// # Pace
//
// What is to be told is gathered, put in order of the key space, and sent at
// [Config.Rate]. One lookup finds the nearest sites for a whole region of that space
// (all of it while there are fewer than 8 servers), so that a thousand blobs cost
// little more than the 4000 messages that their records are. kad-dht's own sweeping
// provider does the same, but takes nothing back, and in a network as small as this
// is sends all records in one burst.
//
// # Who takes part
//
// The protocol is /granary/NETWORK/kad/1.0.0: sites of other networks, and IPFS, are
// not met even where they are connected. This keeps networks apart and nobody out:
// who may connect is decided by the host's gate. Whoever may can learn who has a
// digest that he knows, and can announce himself for any. There are no values in this
// DHT, so none to store or validate: what is not about providers is refused.
//
// Knowing a digest opens nothing (see "Who may read what" in ARCHITECTURE.md), and
// digests cannot be listed. Yet an announcement tells the nearest sites that this one
// has that blob. What is announced is the caller's to decide: what is not public should
// not be, unless whoever runs the site says so.
//
// # Bounds
//
// [Config.MaxRecords] records for others, and 64 providers of a blob; when they are too
// many, the site with the most loses its oldest. 8 addresses of a site, of 256 bytes.
// 4 streams of a site at once, with a message of 4 MiB each. A lookup takes 10 s at
// most. How many may be connected is for the host's resource manager.
package dht
