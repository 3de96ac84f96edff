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
package chunkstore
