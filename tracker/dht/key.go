package dht

import (
	"encoding/hex"

	"github.com/ipfs/go-cid"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
)

// keyOf returns the multihash of a digest, which is what the DHT knows a blob by.
func keyOf(d digest.Digest) (multihash.Multihash, bool) {
	if d.Validate() != nil {
		return nil, false
	}
	code, ok := map[digest.Algorithm]uint64{digest.SHA256: multihash.SHA2_256, digest.SHA512: multihash.SHA2_512}[d.Algorithm()]
	if !ok {
		return nil, false
	}
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return nil, false
	}
	key, err := multihash.Encode(sum, code)
	return key, err == nil
}

// digestOf returns the digest that a key is the multihash of. Others are not kept.
func digestOf(key []byte) (digest.Digest, bool) {
	m, err := multihash.Decode(key)
	if err != nil {
		return "", false
	}
	algorithm, ok := map[uint64]digest.Algorithm{multihash.SHA2_256: digest.SHA256, multihash.SHA2_512: digest.SHA512}[m.Code]
	if !ok || m.Length != algorithm.Size() {
		return "", false
	}
	return digest.NewDigestFromBytes(algorithm, m.Digest), true
}

func cidOf(key multihash.Multihash) cid.Cid { return cid.NewCidV1(cid.Raw, key) }

// placeOf returns where a key is in the space in which sites are near to it.
func placeOf(key multihash.Multihash) kb.ID { return kb.ConvertKey(string(key)) }
