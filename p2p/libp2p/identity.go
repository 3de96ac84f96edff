package libp2p

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/granary-oci/granary/tracker"
)

// signed comes before everything that is signed, so that what is signed here is
// never a message of the handshakes, which are signed with the same key.
const signed = "granary-signature:"

// Identity is the Ed25519 key that a member is known by.
type Identity struct {
	key crypto.PrivKey
	id  peer.ID
}

// NewIdentity makes an identity that lasts as long as the process.
func NewIdentity() (*Identity, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	return identityOf(key)
}

func identityOf(key crypto.PrivKey) (*Identity, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &Identity{key: key, id: id}, nil
}

// LoadIdentity returns the identity that file holds, in libp2p's format for
// private keys. If there is no such file it makes one with write, which is to make
// path hold p, readable by its owner alone, or to leave it as it was. A file that others can read, or that is damaged, is an error: the identity
// is not replaced without somebody's doing.
func LoadIdentity(file string, write func(path string, p []byte) error) (*Identity, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(file, write)
	}
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("identity %s: others can read the private key (mode %#o): run chmod 600 on it, or delete it for a new identity", file, mode)
	}
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	key, err := parseKey(p)
	if err != nil {
		return nil, fmt.Errorf("identity %s: damaged (%w): restore it, or delete it for a new identity", file, err)
	}
	return identityOf(key)
}

// parseKey also checks that the two halves of the key fit, which libp2p does not.
func parseKey(p []byte) (crypto.PrivKey, error) {
	key, err := crypto.UnmarshalPrivateKey(p)
	if err != nil {
		return nil, err
	}
	if key.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("a key of type %v, not Ed25519", key.Type())
	}
	raw, err := key.Raw()
	if err != nil {
		return nil, err
	}
	if whole := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize]); !bytes.Equal(whole, raw) {
		return nil, errors.New("private and public key do not fit")
	}
	return key, nil
}

func createIdentity(file string, write func(path string, p []byte) error) (*Identity, error) {
	i, err := NewIdentity()
	if err != nil {
		return nil, err
	}
	p, err := crypto.MarshalPrivateKey(i.key)
	if err != nil {
		return nil, err
	}
	if err := write(file, p); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return i, nil
}

// ID returns the peer ID, which is the public key.
func (i *Identity) ID() tracker.ID { return tracker.ID(i.id.String()) }

// Key returns the private key, for hosts that go by the same ID.
func (i *Identity) Key() crypto.PrivKey { return i.key }

// Sign signs p for [Verify].
func (i *Identity) Sign(p []byte) ([]byte, error) {
	return i.key.Sign(append([]byte(signed), p...))
}

// Verify reports whether signature is what the member with this ID made of p with
// [Identity.Sign]. An ID that holds no Ed25519 key has signed nothing.
func Verify(id tracker.ID, p, signature []byte) bool {
	decoded, err := peer.Decode(string(id))
	if err != nil {
		return false
	}
	key, err := decoded.ExtractPublicKey()
	if err != nil || key.Type() != crypto.Ed25519 {
		return false
	}
	ok, err := key.Verify(append([]byte(signed), p...), signature)
	return ok && err == nil
}
