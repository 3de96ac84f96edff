// Package fuse mounts the tree of an image, read-only, before the image has arrived:
// names and attributes come from the layers' tables of contents, which are there, and
// contents from whoever has them, when a program reads them.
//
// # Nodes
//
// It speaks to the kernel without a table of its own. A file's number, for the kernel
// and for programs, is the position of its first name in the tree, counted from 1: the
// same for all names of a file, the same in every mount of an image, and small enough
// for programs that know only 32 bits. Whatever the kernel asks of a number is looked up
// in the tree, so that what the kernel remembers, or forgets, costs nothing here. The
// same position is where a directory's listing goes on.
//
// # Caches
//
// Nothing changes, so the kernel may keep all it has been told: names, that there is no
// such name, attributes, links, listings and contents. Opening a file asks nobody, unless
// the kernel may read files by itself.
//
// # Passed files
//
// [Files] that are complete on disk are passed to the kernel when they are opened: what a
// program reads of them, or maps, does not come through this process. It must be asked
// about each file that is opened then, small ones too, for the kernel can be told only
// once, and of all files, that this is not needed.
//
// # Failures
//
// A read gives the right bytes or an error, within the time that [Config] says: EINTR
// when the program was interrupted, EACCES where somebody may not read any more, and EIO
// for everything else. What the kernel has kept is read all the same.
//
// A process must not use a file system that it serves itself, for what it waits for may
// be itself: see [FileSystem.Serve].
package fuse
