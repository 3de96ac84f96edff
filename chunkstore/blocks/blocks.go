// Package blocks gives chunks the form that they have in IPFS: a chunk is a block of the codec raw
// under the CIDv1 of its SHA-256, so that a digest and a CID are two ways to write the same. Which
// chunks there are, and for whom, is its source's to say; nothing is put in.
package blocks

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/boxo/blockstore"
	block "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Source has chunks by their own SHA-256 digest. [chunk.ErrNotFound] is for what is not there and for
// what is not for whoever asks.
type Source interface {
	// Block returns bytes that have the digest d, which it has made sure of.
	Block(ctx context.Context, d digest.Digest) ([]byte, error)
	// BlockSize returns the size in bytes of what Block returns.
	BlockSize(ctx context.Context, d digest.Digest) (int64, error)
}

// CID returns the CID of a chunk: version 1, codec raw, SHA-256. d must be a SHA-256 digest.
func CID(d digest.Digest) (cid.Cid, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return cid.Undef, fmt.Errorf("%q is not a SHA-256 digest", d)
	}
	hash, err := multihash.FromHexString("1220" + d.Encoded()) // SHA-256, of 32 bytes
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(cid.Raw, hash), nil
}

// Digest returns the digest that a CID has in it. ok is false for one that no chunk has.
func Digest(c cid.Cid) (d digest.Digest, ok bool) {
	if !c.Defined() {
		return "", false
	}
	if p := c.Prefix(); p.Version != 1 || p.Codec != cid.Raw || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
		return "", false
	}
	hash, err := multihash.Decode(c.Hash())
	if err != nil {
		return "", false
	}
	return digest.NewDigestFromBytes(digest.SHA256, hash.Digest), true
}

// Store is a source as boxo reads it.
type Store struct{ Source }

var _ blockstore.Blockstore = Store{}

var errReadOnly = errors.New("blocks are not put here")

// Get implements [blockstore.Blockstore].
func (s Store) Get(ctx context.Context, c cid.Cid) (block.Block, error) {
	d, ok := Digest(c)
	if !ok {
		return nil, format.ErrNotFound{Cid: c}
	}
	p, err := s.Block(ctx, d)
	if err != nil {
		return nil, missing(c, err)
	}
	return block.NewBlockWithCid(p, c)
}

// GetSize implements [blockstore.Blockstore].
func (s Store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	d, ok := Digest(c)
	if !ok {
		return 0, format.ErrNotFound{Cid: c}
	}
	n, err := s.BlockSize(ctx, d)
	return int(n), missing(c, err)
}

// missing returns an error as boxo understands it.
func missing(c cid.Cid, err error) error {
	if errors.Is(err, chunk.ErrNotFound) {
		return format.ErrNotFound{Cid: c}
	}
	return err
}

// Has implements [blockstore.Blockstore].
func (s Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := s.GetSize(ctx, c)
	if format.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Put implements [blockstore.Blockstore]: it fails.
func (Store) Put(context.Context, block.Block) error { return errReadOnly }

// PutMany implements [blockstore.Blockstore]: it fails.
func (Store) PutMany(context.Context, []block.Block) error { return errReadOnly }

// DeleteBlock implements [blockstore.Blockstore]: it fails.
func (Store) DeleteBlock(context.Context, cid.Cid) error { return errReadOnly }

// AllKeysChan implements [blockstore.Blockstore]: it fails, for what is here is nobody's to list.
func (Store) AllKeysChan(context.Context) (<-chan cid.Cid, error) { return nil, errReadOnly }
