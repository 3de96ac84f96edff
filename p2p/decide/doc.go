// Package decide is what members of a cluster decide about stripes: whom to ask and what to do when that does not
// help ([Pursuit]), whom an owner sends a stripe to and whom it refers others to ([Spreads]), and what is made of a
// member by how it answers ([Health]).
//
// Nothing here starts a goroutine, reads a clock, waits or sends: each is told what happens and when, with a source of chance as an argument. So package p2p
// drives it with goroutines and connections, and simtest/sim with one loop of events.
package decide
