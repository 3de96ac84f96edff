// Package chunk is the vocabulary of Granary: what a chunk is, who can give one,
// and the few ways in which givers are combined. It does no input or output.
//
// # Blobs, chunks and refs
//
// A blob is anything that a registry serves by digest. It is a sequence of
// chunks, cut on a fixed grid of [Size] bytes that is known before any byte is,
// so that nodes can share a blob which none of them has yet. A [Ref] names one
// chunk; a [Map] lists a blob's chunks in order. A blob no larger than one chunk
// is its own only chunk, and its digest is the chunk's digest.
//
// # Sources
//
// A [Source] gets whole chunks. A [Store] keeps them too. Behaviour is added by
// wrapping: [Verify] checks what a source gives, [First] asks several in order,
// [Tier] puts a fast store before a slow one, [Cache] keeps what a far source
// gives in a near store, with one fetch per chunk however many wait ([Flight]).
// A source that gives adjacent chunks cheaper together is a [Runner].
//
// Errors keep three answers apart, even when they are joined: [ErrNotFound]
// (ask the next source), [*CorruptError] (somebody is to blame) and everything
// else (the source could not say, so its answer is not a miss).
//
// # Trust
//
// An OCI digest covers only the whole blob, so a chunk of a larger blob is
// trusted for one of these reasons: it is whole (the chunk is the blob), it is
// proven (the whole blob was hashed in order, and matched), or it is this node's
// own (it came from the upstream itself). A [Blob] hashes as it is read: the
// last chunk of a blob that is not proven yet is given out only after the digest
// has matched. On the way the hash leaves a [Link] at every chunk's end; the
// links of a proven blob let each of its chunks be checked alone afterwards,
// without hashing anything a second time.
package chunk
