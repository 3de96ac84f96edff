// Package snapshotter has a real containerd start containers through a node that is its
// remote snapshotter, and does to the node, to what keeps its mounts and to the registry
// what happens to them. It takes root, runc and what install.sh builds.
package snapshotter
