// Package p2ptest is a network in memory for nodes of package p2p: a [p2p.Transport]
// for each of them, with links that have a rate and a latency, and nodes that
// freeze, die or are cut off. It leaves to the tests what the nodes say.
//
// Nothing waits but on channels and timers, so that in a bubble of testing/synctest
// a transfer of an hour takes as long as its bytes take to copy. No stream is kept
// that has ended; [Network.Close] ends all.
package p2ptest
