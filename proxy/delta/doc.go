// Package delta finds chunks of a blob in other blobs that are stored. Of a blob that comes
// again with little of it changed in place, such as a model that was trained on, only what
// differs has to be fetched then. Which chunks these are tells a map: the digests of the
// blob's chunks in order, of which a member that has all of the blob gives the parts that it
// is asked for.
//
// A map is its giver's word and no more: what is found by it may be read where the word of a
// member is enough, and has been right when all of the blob has matched its digest. Chunks
// that come from elsewhere are never compared with it.
//
// A giver makes a part when it is asked for it, by hashing the chunks, so parts are small and
// asked for ahead of who reads the blob. What is not there in time is done without: a map that
// nobody has, or that comes slowly, costs little time, and none that comes never fails a read.
package delta
