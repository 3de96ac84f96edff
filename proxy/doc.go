// Package proxy is the registry that container runtimes see: the pull side of
// the OCI distribution specification, answered from the chunk store and, for
// what is not there, from the registry that owns the image.
//
// A [Registry] knows how to answer: which upstream a repository has, what a tag
// means now, who may read, where a blob's bytes come from. A [Handler] is its
// HTTP face and knows nothing but HTTP.
//
// A [Repository] is one repository as one caller reads it: what the upstream would
// serve to that caller, and nothing else. proxy/access remembers whom it has
// served. A blob is served under a repository only if the upstream has confirmed
// it there, and bytes that came from another host only after this one has shown
// that it has them.
//
// What net/http's ServeContent does not do (ranges of a zero-length suffix,
// unknown units, HEAD with Range, and above all a last chunk that is held back
// until the blob's digest has matched) is why bytes leave through proxy/content.
package proxy
