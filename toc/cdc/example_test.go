package cdc_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// A new version of a layer is put together of what the old one has, and of what is fetched.
func Example() {
	older, newer := layerOf("kept", "old"), layerOf("kept", "new")
	ctx := context.Background()

	held := make(map[toc.Digest][]byte)
	err := cdc.Walk(ctx, bytes.NewReader(older), func(c cdc.Chunk, p []byte) error {
		held[c.Digest] = bytes.Clone(p)
		return nil
	})
	if err != nil {
		panic(err)
	}
	sent, err := cdc.Of(ctx, bytes.NewReader(newer)) // by who has the new one
	if err != nil {
		panic(err)
	}
	m, err := cdc.Decode(sent.Append(nil))
	if err != nil {
		panic(err)
	}
	var whole []byte
	for _, c := range m.Chunks {
		p, ok := held[c.Digest]
		switch {
		case c.Inline != nil:
			p = c.Inline
		case !ok:
			p = newer[c.Offset : c.Offset+c.Size]
			fmt.Printf("fetched %s, which is right: %v\n", p, c.Fits(p))
		}
		whole = append(whole, p...)
	}
	fmt.Println(bytes.Equal(whole, newer))
	// Output:
	// fetched new, which is right: true
	// true
}

func layerOf(contents ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, s := range contents {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Size: int64(len(s))}); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(s)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}
