// Package access remembers who may read what. The rule is that a byte is served
// to someone only if the upstream would have served it to them, and the upstream
// says so each time it serves: that is a grant, to a caller, for a repository.
//
// # Grants
//
// A caller is nobody in particular, or a credential: whatever a request has in
// its Authorization field. A grant to nobody makes a repository public. Where
// the node has credentials of its own that it shares, what they are granted is
// granted to everybody who asks this node.
//
// A grant is fresh for some minutes, in which the upstream need not be asked
// again. It holds for longer while the upstream cannot be asked. It never
// outlives the token that it was given to: as long as a JSON Web Token says, and
// a minute for a token that cannot be read, for so long every token lives
// (distribution, "Token Authentication Specification"). A refusal ends the grant
// of the credential that earned it, and no other.
//
// # What is kept
//
// Grants survive restarts, and are kept under hashes of credentials: of tokens,
// which cannot be guessed, SHA-256; of passwords, which often can, PBKDF2 with a
// salt of the node. No credential is written to disk or logged. The challenge
// that a repository last made is no secret and kept too: without it a client
// does not know, while the upstream is gone, with what to come.
package access
