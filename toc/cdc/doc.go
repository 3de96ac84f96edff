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
// [Walk] cuts around each file's content: one of at most [NormalSize] is a chunk, a larger one
// is cut where its content says so ([Cutter.Cut]), as is what is no tar, or is none any more from
// some byte on. What stands between contents, headers and what fills up blocks, is in the map
// itself, up to [MaxInline]: what compresses to 20 bytes is not worth 32 bytes of digest, nor
// being stored and asked for alone, and in one chunk with a content they would make that a
// new one with each build that sets times. So a map says what files there are, too: longer runs of
// headers are rare (with 4 KiB a Debian of 103 MB would have ten, in a map that is 1 % smaller).
//
// What is to be fetched then, of nine packages of Debian after a security update, whose
// times change, and of npm's next 14.2.5 after 14.1.4, whose times do not, maps and all, in
// batches of 1 MiB that are compressed with zstd (simtest/updates has more, and prints it anew):
//
//	                                        Debian         next
//	all of it                             124.0 MB      17.0 MB
//	whole files                           108.7         11.4
//	chunks of 64 KiB across files          72.8         11.1
//	files in chunks of 256 KiB             76.6         11.5
//	files in chunks of 64 KiB              67.2          9.7
//	  with headers as chunks               67.4         10.1
//	  with headers in one with contents    73.3         10.2
//	files in chunks of 32 KiB              63.4          8.9
//	files in chunks of 16 KiB              60.3          8.1
//
// Smaller chunks find more, and are more to remember and to ask for: those of 16 KiB are 2.7
// and 1.4 times as many.
//
// # How it is cut
//
// By FastCDC (Xia et al., USENIX ATC 2016), with its Gear hash and normalized chunking of level
// 2. For each byte the hash is shifted by one bit, and the byte's number added. A chunk of
// 16 KiB or more ends where the 18 highest bits of the hash are zero, one of 64 KiB or more where
// the 14 highest are, and any at 256 KiB. The paper looks at bits that are spread, for these to
// depend on many bytes; the highest depend on at least 47. It begins to hash at the smallest
// size; here the 64 bytes before that are hashed too, so that whether a chunk may end at a place
// depends on the 64 bytes before the place and on nothing else.
//
// Sizes, numbers and rule are part of the protocol between sites, and frozen: the tests have
// the chunks of known bytes. The encoding of a map has a version.
//
// Cutting takes 1 CPU second for 1750 MB (a tar of Debian in memory, nothing hashed; median of
// seven), where in the same run jotfs's FastCDC took it for 1595, and Plakar's for 1299 (its
// jc, another rule, for 2215). With the SHA-256 of chunks it is 800 MB.
package cdc
