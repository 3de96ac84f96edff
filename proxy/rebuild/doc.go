// Package rebuild moves a layer between sites by what changed in it.
//
// Two versions of a layer in gzip share no bytes, though most of what they unpack to is the
// same. So a hub says of a layer that it has which chunks its tar consists of (package toc/cdc), and
// of one in gzip also how that is made again from the tar (package toc/recipe): an [Offer]. An edge takes
// the chunks that its older layers have from those, asks the hub for the others' contents, and
// makes the layer again ([Edge.Rebuild]), or reads single files of it ([Tar]). Contents of a file
// that has changed are compressed with what the edge has of the older one as a dictionary.
//
// # Trust
//
// An offer is as good as the word of who makes it, and so is what an edge makes by it, up to the
// one thing that counts: its digest is the layer's, or it is thrown away. A map alone stays that word, and each chunk
// is held to it. Who may have an offer or
// contents is who may read the layer itself: both tell what is in it.
//
// # What it costs
//
// An edge reads each older layer once, at about 130 MB of its tar in a CPU second, and packs the tar, at 30 MB as Go's
// gzip does and 100 as pgzip does. It takes files of the size of the tar and of the layer, some 10 MB of memory, and
// the memory of the map. Nothing of that is begun where there are no older layers.
package rebuild
