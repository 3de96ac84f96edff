// Package site gives a node its libp2p host for other sites: who is met there is no
// member of the cluster, may be far away, and may be behind NAT. What is said on a
// stream is the business of others (discovery, bitswap, parents).
//
// Members meet on p2p/libp2p, which knows them from the membership and needs no more
// than TCP. Here addresses are learned, so it is libp2p's own host, on TCP and QUIC,
// put together of its parts: go-libp2p's constructor links WebRTC and WebTransport
// too. What secures a connection, what bounds it and the identity are the members'.
//
// # Who may connect
//
// [Config.Allow] is asked when the other side has proven its ID, on relayed
// connections too, and before anybody is dialled.
//
// # Lines that die
//
// A stream that [Dial] has opened fails within some seconds when the line to the other site is down, and
// not after the half minute of QUIC or the quarter of an hour of TCP: see line.go. A site that
// is asked for a sign of life on such a stream's connection need not know how to give one.
//
// # Sites that cannot be dialled
//
// Such a site names relays: hubs that it can dial and that offer the service. It keeps a
// connection and a reservation at each, and its addresses go through them. Who dials
// one is connected by the hub, and then both try to reach each other directly, at the
// same time (DCUtR, github.com/libp2p/specs/relay/DCUtR.md), which most NATs let
// through; QUIC more often than TCP. libp2p tries that only with public addresses.
//
// A relayed connection ends after [RelayTime] and [RelayBytes] in each direction, for
// the bytes cross the hub's link twice. So it is limited, as libp2p says, and takes no
// streams but of those that ask for it (network.WithAllowLimitedConn). A hub has room for
// 128 sites, 8 of them at one address, and 16 connections through it for each.
package site
