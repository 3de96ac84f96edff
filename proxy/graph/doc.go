// Package graph finds all that an image consists of. It reads manifests from a
// [Source] and gives the graph that they span as a value; what is done with the
// nodes (copied, kept, fetched ahead) is for others to do. It has no I/O of its own.
//
// # What refers to what
//
// A manifest refers to whatever its JSON describes: every object, at any place, that has
// the three fields of a descriptor (image-spec, descriptor.md: mediaType, digest, size)
// is a [Reference]. Where it stands is its [Role]: config, layers, manifests and
// subject are the specification's; a descriptor anywhere else is nested, such as the
// compat within a platform that names a manifest or a blob of compatibilities, or what a
// later specification will name. Fields are found by their place and not by a type that
// knows them, so nothing is lost for being unknown, and no bytes are ever made anew.
//
// What stands in the specification's places is required: without it what refers to it is not
// whole. What is nested may be no reference at all (a record of a base image, say), so it
// belongs to the graph only if it is there; if not, a [Problem] says so that is no failure.
// A subject may be missing too (distribution-spec, "Pushing Manifests with Subject"), and
// layers that may not be distributed usually are.
//
// Other manifests refer to a manifest without its knowing: signatures and the like. They
// are the registry's to list, by its API, by the referrers tag where there is none, and by
// the tags of cosign: sha256-….sig, .att and .sbom. A walk asks for them where it has a [Finder].
//
// # Manifests and blobs
//
// A registry keeps the two apart, so a walk has to know which to ask for. What stands as
// config or layer is a blob. Else the media type tells; if that is unknown, the place does:
// what stands where a manifest should (in manifests, as subject, as referrer) is looked for
// as a manifest first, what is nested as a blob first, and each as the other if it is not there.
//
// Blobs are not looked into, even if they are JSON: a config of unknown type must not be
// parsed (image-spec, manifest.md), and text in an SBOM is no wish to have something fetched.
// A manifest of an unknown media type is looked into.
//
// # Order
//
// Nodes come children first: who copies them in order never has a manifest without what
// its content names. The order depends on the content alone, however many manifests are
// read at once. Digests allow no cycle in contents, and referrers, which do make cycles, do
// not count for the order: they come after what they refer to. A source that lies
// gets an order all the same, with each node once.
package graph
