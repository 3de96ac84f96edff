// Package hostile is a member of a cluster as no cluster wants one. It has the
// secret, an identity and lanes, gossips, answers pings and takes note of what it is
// told, so that others have no reason to keep it out: it owns its share of all
// stripes. It says of every blob that it has all of it too, so that whoever misses
// anything asks it. What then comes is a [Behaviour].
//
// What it sends is never the bytes that were asked for. It knows no others: it needs
// neither a registry nor a store. Of maps of blobs it gives what it is told to.
package hostile
