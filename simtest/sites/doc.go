// Package sites makes a hub, a granary beside its registry, and sites that have it for a parent: each a cluster of its
// own, behind NAT, at the end of a line of 50 Mbit/s and 80 ms. It counts what comes out of these. It takes root, ip, tc and nft.
package sites
