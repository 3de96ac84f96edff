// Package tracker says which members of a cluster answer for what.
//
// Placement is rendezvous hashing (Thaler and Ravishankar, "Using name-based
// mappings to increase hit rates", 1998): each member has a score for each key, and
// the members in order of their scores are the key's owners. Nobody is asked, every
// member computes the same, and when one comes or goes only its share of the keys
// moves. A key is a stripe of a blob, a digest or a repository.
//
// Owners are of the asker's own zone; keepers are of any. Members that drain, or
// have weight 0, are neither.
//
// [View] is one state of the membership and never changes. Where views come from is
// the business of a [Members]: package gossip for a cluster, [Static] for tests.
// [Providers] remembers who has said that they hold a blob. A [Tracker] tells others
// and finds them: package dht for sites, package gossip as far as keepers are told.
package tracker
