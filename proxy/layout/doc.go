// Package layout reads an OCI image layout (image-spec, image-layout.md) in the place of a
// registry: from a directory, which may be on NFS and change while it is read, from a tar
// file, in which blobs are read where they lie, or from a web server that knows nothing of
// registries. It writes nothing.
//
// A tar file may have images in the form that `docker save` gave them before there were layouts
// in it: what they have is a layout too then, with manifests that are made of it (see saved.go).
//
// A [Layout] is the files of one layout as one registry's; a [Repository] is a name in
// it, and is read like a registry's. Where the files are is behind [Files].
//
// # Names
//
// An entry of index.json has a name, in the annotation org.opencontainers.image.ref.name,
// or io.containerd.image.name where containerd wrote it:
//
//   - HOST/NAME:TAG is that tag of that repository, and of no other; without a tag it is
//     latest.
//   - NAME:TAG is the same in the registry that the layout stands for. In docker.io a
//     name of one element has library/ before it, as everywhere.
//   - TAG alone is a tag of whatever repository of that registry is asked for. A full
//     name goes before it.
//   - HOST/NAME@DIGEST tells which repository it belongs to, and is no tag.
//   - Anything else is no name that a registry could have. The image is there by digest.
//
// Of several entries with one name the first counts. In what `docker save` has written NAME:TAG
// is one of docker.io, whichever registry the layout stands for.
//
// # What belongs where
//
// A layout is one domain of trust: a manifest or blob that is in it is in every
// repository of it. Who may write into it decides what is public by it.
//
// A manifest that index.json names has the size and media type that are given there; any
// other has the media type that it says itself, or what its fields show. Nothing is
// searched: an index that names others, however deep, is as good as what it is.
//
// # Referrers
//
// They are in a layout in two ways, and both count: as entries of index.json whose
// manifests have a subject (as oras writes them), and in an index under the subject's
// fallback tag (as regctl does; distribution-spec, "Referrers Tag Schema").
//
// # Change
//
// index.json is read again when it has changed. While it cannot be understood, as in the
// midst of being written, what it said last holds, and that is reported. Blobs are
// opened each time, from the directory that has the layout's name at that time.
//
// # Errors
//
// What a layout lacks is a plain [chunk.ErrNotFound], never an [upstream.StatusError]:
// layouts may be sparse, and it is no word of a registry. Files that contradict what
// names them are a [*chunk.CorruptError] that names the file; files that cannot be
// understood are a [*FormatError]. A layout that is not there, in a directory that is
// missing or empty because nothing is mounted there, or on a server that does not
// answer, is [upstream.Unreachable].
package layout
