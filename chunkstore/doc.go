// Package chunkstore keeps chunks: on disk, and a few of them in memory.
//
// # On disk
//
// A [Disk] has one sparse file per blob, in which every chunk stands at its own
// offset, and one bbolt index that says which chunks are in and what vouches for
// each. Both are under one directory:
//
//	VERSION                     format of the directory, a decimal number
//	lock                        flock'ed by the holder, who writes its name in it
//	index.db                    bbolt: blobs, chunks, digests
//	blobs/sha256/ab/abcdef…     the bytes of a blob
//
// Bytes are written as they come and served from then on; what vouches for them
// is recorded in batches. A batch first syncs the files it speaks of, then
// commits the index, so after a crash the index never promises what the files do
// not hold: a chunk that was not committed is simply fetched again.
//
// What vouches for a chunk is its own digest, or the two links of its blob's
// hash that it lies between (see [chunk.Link]), or, when the chunk is the whole
// blob, the blob's digest. A chunk is checked the first time that a process
// reads it; a whole blob whose chunks have been checked is lent as a file, for
// sendfile. Wrong bytes are dropped and reported, and the reader goes on to the
// next source.
//
// The store has a budget of bytes. Above its high watermark whole blobs are
// evicted, least recently read first and blobs of one chunk last, for those are
// the manifests and configs without which nothing else can be served. What a
// manifest holds beside its layers, [Config.Held], stays as long as the manifest,
// of whatever size it is. A blob that is being read is never evicted. A full disk
// makes Put fail and nothing else.
//
// # On disk once
//
// Where the file system can share ranges of files (Btrfs, XFS), which is tried when
// the store is opened, a chunk that has the digest of one that is there is cloned from
// it instead of being written, and then compared with what was put. It is a chunk like
// any other: recorded when its file is synced, checked by whoever reads it first, and
// not touched by what becomes of its source. If one of those that share bytes is found
// to be wrong, the others are checked when they are read next.
//
// A chunk that is put without its digest, as it comes from a registry or is imported,
// is hashed for that, but only on such a file system. To do so before it is written
// costs no second read, and two versions never take room for both of them, not even
// for a moment. Because chunks are on a grid, versions that differ in place share all
// the rest, while of two tars only what stands at the same place of a chunk is one: an
// insertion of anything but whole chunks moves all that follows. Of chunks that are
// equal and come at the same time each may be written.
//
// The budget counts such bytes once, and what is evicted frees what no other blob
// has. Nothing of that is recorded: when the store is opened, chunks of one digest
// share bytes if the first of these is at the same place of the disk, as the file
// system tells it (FIEMAP). With a damaged index the digests are made anew. What is
// not known to be shared counts for each blob: after a restart that is all on a file
// system that tells no places.
package chunkstore
