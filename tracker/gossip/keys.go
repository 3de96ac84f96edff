package gossip

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"
)

// deriveKeys returns the AES-256 keys of secrets, in their order and each once.
func deriveKeys(secrets [][]byte) ([][]byte, error) {
	var keys [][]byte
	for i, s := range secrets {
		if len(s) == 0 {
			return nil, fmt.Errorf("secret %d is empty", i+1)
		}
		key, err := hkdf.Key(sha256.New, s, nil, "granary gossip v1", 32)
		if err != nil {
			return nil, fmt.Errorf("secret %d: %w", i+1, err)
		}
		if !contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func contains(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}

// setKeys makes keys those of ring, at least one, while others read them.
func setKeys(ring *memberlist.Keyring, keys [][]byte) error {
	var errs []error
	for _, k := range keys {
		errs = append(errs, ring.AddKey(k))
	}
	errs = append(errs, ring.UseKey(keys[0]))
	old := slices.DeleteFunc(slices.Clone(ring.GetKeys()), func(k []byte) bool { return contains(keys, k) })
	if len(old) > 0 {
		// RemoveKey shifts the keys behind the one it removes under the hands of
		// those who read them, so that those to be removed have to be the last.
		for _, k := range slices.Backward(keys) {
			errs = append(errs, ring.UseKey(k))
		}
	}
	for _, k := range slices.Backward(old) {
		errs = append(errs, ring.RemoveKey(k))
	}
	return errors.Join(errs...)
}

// SetSecrets makes secrets those of this member: the first encrypts, all decrypt.
// Whoever has none of them is a member no more. A cluster with secrets cannot go
// without, nor one without come by any.
func (g *Gossip) SetSecrets(secrets [][]byte) error {
	keys, err := deriveKeys(secrets)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	if (len(keys) == 0) != (g.ring == nil) {
		return errors.New("gossip: encryption is turned on or off at the start only")
	}
	if g.ring == nil {
		return nil
	}
	g.rotating.Lock()
	defer g.rotating.Unlock()
	return setKeys(g.ring, keys)
}
