package node

import (
	"bytes"
	"errors"
	"io"
	"os"

	"github.com/granary-oci/granary/chunkstore"
)

const (
	claimsName    = "claims.json"
	maxClaimsFile = 64 << 20 // bytes
)

// restoreClaims reads what the process before has handed on. A file is good for one
// start: after a crash nobody knows what it says of chunks that were lost.
func (c *cluster) restoreClaims() {
	f, err := os.Open(c.claims)
	if err != nil {
		return
	}
	defer f.Close()
	err = c.client.Claims().Decode(io.LimitReader(f, maxClaimsFile))
	if rerr := os.Remove(c.claims); rerr != nil || err != nil {
		c.log.Warn("what may be lent is found out again", "error", errors.Join(err, rerr))
	}
}

func (c *cluster) saveClaims() error {
	if c.claims == "" {
		return nil
	}
	var text bytes.Buffer
	if err := c.client.Claims().Encode(&text); err != nil {
		return err
	}
	return chunkstore.WriteDurably(c.claims, text.Bytes())
}
