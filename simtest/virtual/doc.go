// Package virtual simulates clusters that pull a cold image at once: in virtual time
// (testing/synctest), above the network in memory of p2p/p2ptest, whose links have a
// rate and a latency. Clients, servers, flights, caches and readers are the ones that
// a node runs, put together as package proxy does; modelled are the network, a
// registry that is one more node of it, the disk, and gossip, which is a list of
// members that changes some time after the members do.
//
// The bytes are windows of one piece of noise, so that a store need not keep them and
// nothing compresses them. Each chunk is hashed where it enters a node, and each blob
// where it is read, as everywhere.
//
// What is asserted is bytes: what left the registry, what each node uploaded, and
// that every node read the image. Times are printed, and are those of the model: they
// have links in them and no CPU. Rows say:
//
//	registry   bytes that left it, in copies of the image
//	requests   to it, and the image's stripes
//	median, last   virtual time in which a node had the image; bound: image / registry's rate
//	upload     of the median and of the busiest node, in copies of the image
//	owned      the largest part of the image that one node owns
//	elsewhere  requests that were made to another owner than a stripe's first: hedges
//
// Run
//
//	go test ./simtest/virtual -v
//
// pulls an image of 48 MiB by 8 and by 100 nodes, and by 20 while something goes wrong,
// in 40 s of CPU; with -race by 8. With 100 nodes the image of 600 MiB takes two minutes
// of CPU and 4 GiB of memory:
//
//	GRANARY_TEST_LONG=1 go test ./simtest/virtual -run Cold -v
package virtual
