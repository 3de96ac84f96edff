// Package parent reads from nodes of other sites, which stand between the members of a zone
// and the registries.
//
// A parent is asked what a registry is asked, at its registry face, under the name of the
// registry: /v2/ghcr.io/org/app/…. So it serves what whoever asks may read there, by the
// credentials that are sent along, and the challenges that it relays are the registry's. It is
// believed about that, and about tags, as the registry is; a registry that can be asked itself
// has the last word where a parent refuses.
//
// # What holds of bytes
//
// What a parent gives of a blob cannot be checked before all of the blob is there. What it gave is
// remembered ([Parents.Doubt]): when the blob does not match its digest, no parent is asked
// for it for a while, the registry's chunks are compared with theirs, and who gave other bytes is at
// fault. So is a parent whose answer cannot be right by itself. A parent at fault is not
// asked for a minute, and twice as long each time within a day.
//
// # Which parent is asked
//
// The first that is not at fault and whose host answers (package upstream, "Patience"): what one does not
// give is asked of the next. One that has failed is tried again with one request after 1 to 30
// seconds, and is the first again once it answers.
package parent
