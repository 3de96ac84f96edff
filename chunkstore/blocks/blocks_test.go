package blocks_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	block "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/chunkstore/chunk"
)

func ExampleCID() {
	c, err := blocks.CID("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	fmt.Println(c, err)
	// Output: bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku <nil>
}

// one is a source of one chunk.
type one struct {
	p   []byte
	err error
}

func (o one) Block(_ context.Context, d digest.Digest) ([]byte, error) {
	if d != digest.FromBytes(o.p) {
		return nil, fmt.Errorf("chunk %s: %w", d, chunk.ErrNotFound)
	}
	return o.p, o.err
}

func (o one) BlockSize(ctx context.Context, d digest.Digest) (int64, error) {
	p, err := o.Block(ctx, d)
	return int64(len(p)), err
}

func TestAStoreHasWhatItsSourceHas(t *testing.T) {
	p := []byte("a chunk")
	here, _ := blocks.CID(digest.FromBytes(p))
	elsewhere, _ := blocks.CID(digest.FromString("another"))
	file := cid.NewCidV1(cid.DagProtobuf, here.Hash())
	s := blocks.Store{Source: one{p: p}}
	if b, err := s.Get(t.Context(), here); err != nil || string(b.RawData()) != "a chunk" || b.Cid() != here {
		t.Errorf("got %v, %v", b, err)
	}
	if n, err := s.GetSize(t.Context(), here); err != nil || n != len(p) {
		t.Errorf("size %d, %v", n, err)
	}
	for _, c := range []cid.Cid{elsewhere, file, cid.NewCidV0(here.Hash()), cid.Undef} {
		if _, err := s.Get(t.Context(), c); !format.IsNotFound(err) {
			t.Errorf("%s: %v", c, err)
		}
		if has, err := s.Has(t.Context(), c); err != nil || has {
			t.Errorf("has %s: %v, %v", c, has, err)
		}
	}
	broken := blocks.Store{Source: one{p: p, err: errors.New("the disk is gone")}}
	if _, err := broken.Get(t.Context(), here); err == nil || format.IsNotFound(err) {
		t.Errorf("what cannot be read is not missing: %v", err)
	}
	if _, err := broken.Has(t.Context(), here); err == nil {
		t.Error("nor is it known not to be there")
	}
	if err := s.Put(t.Context(), block.NewBlock(p)); err == nil {
		t.Error("something was put")
	}
}

func FuzzDigest(f *testing.F) {
	for _, seed := range []string{"bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", "bafkqaaa", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := cid.Decode(s)
		if err != nil {
			return
		}
		d, ok := blocks.Digest(c)
		if !ok {
			return
		}
		if back, err := blocks.CID(d); err != nil || !back.Equals(c) {
			t.Errorf("%s: %s, %v", c, back, err)
		}
	})
}
