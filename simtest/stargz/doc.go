// Package stargz runs the containerd eStargz snapshotter through a node: what it asks of
// a registry the node has to answer, also when the registry is gone. It takes root.
package stargz
