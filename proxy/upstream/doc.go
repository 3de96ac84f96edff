// Package upstream reads from the registry that owns an image: manifests, the
// size of blobs, and runs of a blob's chunks. It keeps nothing that it reads and
// decides nothing about who may read it.
//
// A [Registry] is one registry: its connections, its tokens and what was learned
// of its habits. A [Repository] is a name in it. Every request starts at the
// registry itself; where a redirect led is never remembered.
//
// # How a run of chunks travels
//
//  1. Adjacent chunks are one request for a closed range. A blob that is one
//     chunk is asked for without a range.
//  2. The bytes are read straight into the buffers that are given out, each as
//     soon as it is full, and checked as far as [chunk.Verify] can.
//  3. A body that ends early, or brings nothing for [Config.StallTimeout], is
//     resumed from the first byte that is missing.
//
// # Registries that ignore Range
//
// They send the whole blob each time, so one body per blob is all that may be
// asked for. It belongs to nobody: the run whose turn it is reads it forward and
// gives what passes to the runs that wait for it, the rest to its own caller,
// unasked. Then it is parked for the next run to take over. Only a run that
// begins before the place where the body stands has it opened again: runs that
// come in order, or together in any order, read the blob once, and what a caller
// keeps of the chunks it did not ask for need not be read twice. A registry is
// taken at its last word: after an answer with a range runs go in parallel, after
// one without they take turns.
//
// # Authorization
//
// A challenge (RFC 9110, section 11.6.1) is answered with a token from the realm
// it names, as the distribution specification's token authentication has it, or
// with Basic credentials. What a repository asked for once comes with the next
// request. When there is nothing to answer with, the registry's 401 is returned
// as it came, for the caller to pass on.
//
// A [Repository] is read in the name of the node, or, by [Repository.As], of a
// client: with its token, which is the client's to renew, or with its password,
// which is used as the registry asks.
//
// # Static servers
//
// An image layout may be on a web server that knows nothing of registries
// ([Registry.Static]). Its blobs are at other paths, and read in the same way.
//
// # Patience
//
// What goes wrong and may pass is tried again a few times, with jitter, and after
// as long as a server asks for. A host that has failed several times in a row is
// left alone for a while, then tried with one request. Both are an answer that
// did not come, for [Unreachable].
//
// # Where connections go
//
// [PublicOnly] keeps a client of the node from using it to reach what only the
// node can reach. It is asked of the address that is dialled, so that neither
// names nor redirects nor realms lead around it; settings name exceptions.
//
// # Errors
//
// An answer other than success is a [*StatusError], which is a
// [chunk.ErrNotFound] for 404 and a [chunk.ErrDenied] for 401 and 403. Bytes or lengths that cannot be those of the
// digest are a [*chunk.CorruptError]. [Unreachable] tells whether the registry
// could be asked at all. No error carries a token, a password or the query of a
// URL, which is where signatures are.
package upstream
