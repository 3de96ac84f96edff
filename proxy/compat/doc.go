// Package compat reads what images say of the machines that they suit, and judges
// whether this is one. It knows the documents and the machine, and nothing of
// registries: who calls it brings the bytes.
//
// # Documents
//
// There are three forms: two that were proposed, and one that is in use.
//
//   - Proposal I of the OCI working group on image compatibility: the platform of an
//     index's entry has, as compat, the descriptor of a manifest whose image configuration
//     has config.compatibilities ([ParseConfig]).
//   - Proposal J: that descriptor is of a blob of type [MediaType] ([ParseBlob]).
//   - Node Feature Discovery (NFD): a manifest of type [NFDArtifactType] refers to the
//     image, and has YAML as its only layer ([ParseNFD]).
//
// Each is a [Document]: a list of alternatives, of which one is enough. An alternative is a
// set of conditions, all of which have to hold.
//
// # Judging
//
// There are three answers to a condition, for a guess would be worse than none: it holds, it
// does not, or it cannot be judged, because the key is not known, the value makes no sense, or
// the [Host] has not shown what it is about. An alternative with a condition that does not
// hold is [Unsuited], whatever else it has; one with a condition that cannot be judged is
// [Unknown] otherwise, and never [Suits]. Why is said in words.
package compat
