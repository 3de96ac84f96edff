// Package snapshotter is a remote snapshotter of containerd's: a proxy plugin, which
// containerd asks over a Unix socket for the root file systems of containers
// (containerd, docs/remote-snapshotter.md).
//
// Before containerd fetches a layer, it asks the snapshotter whether it can do without.
// Each layer is mounted alone, by a process that outlives this one (package mounter), and
// containerd is told that the layer is there. A container's root are these mounts, as
// lower directories of overlayfs. What cannot be mounted containerd fetches and unpacks,
// with all layers above it.
//
// How snapshots are kept is stargz-snapshotter's. Which layer of which image is meant
// containerd says in labels, if it is configured to.
package snapshotter
