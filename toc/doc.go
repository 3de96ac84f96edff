// Package toc knows what is in a layer, and reads any file of it without the rest.
//
// A [TOC] is the table of contents of one layer: its entries, sorted by name, and
// for each regular file the [Extent]s of the layer that hold its content. The
// packages below this one read it from a layer of one format each, over nothing but
// an [io.ReaderAt], and give a [Layer]: the table, and an [Inflater] that reads an
// extent's content out of the layer's bytes.
//
// [Overlay] lays the tables of an image's layers over each other by the OCI rules,
// and gives a [Tree]: what a container would see as its root. [Open] gives a file's
// content. An extent with a digest is given out only after all of it has matched,
// and is kept and looked for by that digest ([Contents]), whatever image, layer or
// format it came from.
//
// # Names
//
// A name is relative to the root and clean: "usr/bin/env". The root's is "". Names
// that climb out of the root end at the root, as they do in a container. Every
// entry's parents are entries: what a layer leaves out is added, with mode 0755.
//
// # Trust
//
// Everything in a layer may be made to harm. What is read is bounded in size, count
// and depth (see the Max constants); what breaks a bound is an error that wraps
// [ErrLimit], what makes no sense one that wraps [ErrMalformed]. A table whose
// digest the manifest carries is checked against it. One that the layer alone
// carries is as good as the bytes that it was read from, and [Compare] says whether
// it agrees with the tar that it describes, once all of that is there.
package toc
