// Package cdc cuts what a layer unpacks to into chunks that its next version has too.
//
// A layer as a registry has it changes to its end when a byte of it does. The tar inside
// does not: most files are the same, and large ones have long runs in common. A [Map] says,
// for each chunk of the tar, its size and SHA-256. Who has older layers finds the chunks
// of a newer one there, asks for the others, and has the whole. Where that is kept, who is
// asked, and how a tar becomes the blob again is left to others.
//
// # Where it is cut
//
// [Walk] cuts around each file's content: one of at most [NormalSize] is a chunk, a larger one is cut
// where its content says so ([Cut]), as is what is no tar, or is none any more from some byte
// on. What is between contents, headers and what fills up blocks, is in the map itself
// up to [MaxInline]: headers change with each build that sets times, and 512 bytes that
// compress to 20 are not worth 32 bytes of digest, nor being stored and asked for alone. Of next 14.2.5
// after 14.1.4, map and new chunks take 9.7 MB so, 10.1 MB where the headers are chunks of
// their own, and 10.1 MB where they are one with the content that follows; of nine
// packages of Debian, whose updates change times, 67.3, 67.3 and 71.6 MB (zstd, by 1 MiB).
//
// # How it is cut
//
// By FastCDC (Xia et al., USENIX ATC 2016) with its Gear hash and normalized chunking of
// level 2. A hash is shifted by one bit for each byte, and the byte's number is added. A chunk
// of 16 KiB to 64 KiB ends where the 18 highest bits of the hash are zero, a larger one where
// the 14 highest are, and any at 256 KiB. The paper spreads the bits that it looks at, for these to depend on
// as many bytes as can be; the highest depend on at least 46. It begins to hash at the smallest size, where here
// the 64 bytes before that have been hashed: so where a chunk may end depends on nothing
// but the 64 bytes before.
//
// Sizes, hash and rule are part of the protocol between sites, and frozen: the tests have
// the chunks of known bytes. The encoding of a map has a version.
package cdc
