package trips

import (
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// limit is something that a client does not carry, or a registry does not take from it. The
// node has it all the same: each of them is asked for everything before.
type limit struct {
	client, item string
	// says is part of the error that the client ends with, "" for none.
	says string
	// loses tells what is not at the target then, of what the specifications know; nil is nothing.
	loses func(o *object, root digest.Digest) bool
	// instead is where the bytes of what is lost are all the same, below the repository; nil is nowhere.
	instead func(o *object) string
	// unlisted says that the target does not know all referrers, and untagged that it has no tag.
	unlisted, untagged bool
}

// What none of them follows is a descriptor where the specifications have none, such as in a
// platform; see [object.nested]. Beyond that these are known; versions are those of
// install.sh, and of Debian 12 for skopeo (1.9.3).
var limits = []limit{
	// An index within an index is not copied with it, and has to be copied by its digest.
	{client: "skopeo", item: "nested", says: "Unexpectedly received a manifest list instead of a manifest for a single image", loses: isRoot},
	{client: "containers-image", item: "nested", says: "Unexpectedly received a manifest list instead of a manifest for a single image", loses: isRoot},
	// It drops artifactType from descriptors of an index, as they are in each list of referrers,
	// so that digests would change. It says so, and the newer library does not.
	{client: "skopeo", item: "signed", says: "Instructed to preserve digests", unlisted: true},
	// It does not push a tag and a digest by SHA-512 in one (distribution-spec 1.2), and the
	// registry names by SHA-256 what comes by its tag. The bytes are the same.
	{client: "crane", item: "sha512", loses: isRoot, instead: underTag, unlisted: true},
	// The same, but that it notices.
	{client: "oras", item: "sha512", says: "digest mismatch in Docker-Content-Digest", untagged: true},
	// What is pushed is known by SHA-256 to them, whatever it was named by.
	{client: "skopeo", item: "sha512", says: "saved with digest sha256", loses: isLong, unlisted: true},
	{client: "containers-image", item: "sha512", says: "saved with digest sha256", loses: isLong, unlisted: true},
	// A manifest of an unknown type is a blob to those that take it.
	{client: "crane", item: "odd-manifest", loses: isOddManifest, instead: asBlob},
	{client: "regctl", item: "odd-manifest", loses: isOddManifest, instead: asBlob},
	{client: "oras", item: "odd-manifest", loses: isOddManifest, instead: asBlob},
	{client: "skopeo", item: "odd-manifest", says: "unsupported schema version 2", loses: isOddOrRoot},
	{client: "containers-image", item: "odd-manifest", says: "unsupported schema version 2", loses: isOddOrRoot},
}

func isRoot(o *object, root digest.Digest) bool { return o.digest == root }

func isLong(o *object, _ digest.Digest) bool { return o.digest.Algorithm() == digest.SHA512 }

func isOddManifest(o *object, _ digest.Digest) bool {
	return strings.HasPrefix(o.path, "manifests/") && strings.Contains(string(o.bytes), `"mediaType": "`+oddType+`"`) && !strings.Contains(string(o.bytes), indexType)
}

func isOddOrRoot(o *object, root digest.Digest) bool {
	return isOddManifest(o, root) || isRoot(o, root)
}

func underTag(*object) string { return "manifests/v1" }

func asBlob(o *object) string { return "blobs/" + string(o.digest) }

// limitOf returns what is known of a client and an item; the zero is that all is carried.
func limitOf(client, item string) limit {
	i := slices.IndexFunc(limits, func(l limit) bool { return l.client == client && l.item == item })
	if i < 0 {
		return limit{}
	}
	return limits[i]
}
