// Package trips takes images there and back again: from a real registry through a node into
// files, from these into an empty cluster whose registries are gone, and from its nodes with
// real clients (crane, skopeo, regctl, oras-go) to another registry. Every digest has to
// be the same, and nothing may be lost. What a client itself does not carry is said with the
// client, and got from the node by hand.
package trips
