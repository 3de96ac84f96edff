// Package mount mounts images through a node, with real processes and the kernel's FUSE,
// and compares what programs find there with what tar unpacks. It takes root.
package mount
