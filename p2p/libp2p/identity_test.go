package libp2p

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/granary-oci/granary/tracker"
)

// write is how a node keeps its key, but for durability.
func write(path string, p []byte) error { return os.WriteFile(path, p, 0o600) }

func TestAnIdentityLasts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "identity")
	first, err := LoadIdentity(file, write)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadIdentity(file, write)
	if err != nil {
		t.Fatal(err)
	}
	if first.ID() != second.ID() {
		t.Errorf("loaded %s, want %s", second.ID(), first.ID())
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %#o, want 0600", mode)
	}
	if files, _ := os.ReadDir(filepath.Dir(file)); len(files) != 1 {
		t.Errorf("%d files are left, want the identity alone", len(files))
	}
}

func TestAnIdentityThatOthersCanReadIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "identity")
	if _, err := LoadIdentity(file, write); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadIdentity(file, write); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %#o: %v, want what to do", mode, err)
		}
	}
}

func TestADamagedIdentityIsAnErrorAndStays(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := LoadIdentity(good, write); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), key...)
	flipped[10] ^= 1
	other, _, err := crypto.GenerateSecp256k1Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherType, err := crypto.MarshalPrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]byte{
		"empty": nil, "garbage": []byte("garbage"), "cut short": key[:len(key)-1], "a flipped bit": flipped, "another type": otherType,
	} {
		file := filepath.Join(dir, "bad")
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadIdentity(file, write); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v, want an error", name, err)
		}
		if after, err := os.ReadFile(file); err != nil || string(after) != string(p) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
	}
}

func TestAnIdentityInNoDirectoryIsAnError(t *testing.T) {
	if _, err := LoadIdentity(filepath.Join(t.TempDir(), "no", "identity"), write); err == nil {
		t.Error("no error")
	}
}

func TestASignatureIsOfOneMemberAndOneMessage(t *testing.T) {
	i, other := newIdentity(t), newIdentity(t)
	signature, err := i.Sign([]byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if !Verify(i.ID(), []byte("message"), signature) {
		t.Error("a good signature is refused")
	}
	raw, err := i.key.Sign([]byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"another message":              Verify(i.ID(), []byte("massage"), signature),
		"another member":               Verify(other.ID(), []byte("message"), signature),
		"a signature cut short":        Verify(i.ID(), []byte("message"), signature[:63]),
		"no signature":                 Verify(i.ID(), []byte("message"), nil),
		"no ID":                        Verify("", []byte("message"), signature),
		"an ID that is none":           Verify("nobody", []byte("message"), signature),
		"an ID that holds no key":      Verify(tracker.ID("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"), []byte("message"), signature),
		"a signature of the handshake": Verify(i.ID(), []byte("message"), raw),
	} {
		if ok {
			t.Errorf("%s passes", name)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	i := newIdentity(b)
	p := make([]byte, 200)
	signature, err := i.Sign(p)
	if err != nil {
		b.Fatal(err)
	}
	id := i.ID()
	for b.Loop() {
		if !Verify(id, p, signature) {
			b.Fatal("refused")
		}
	}
}
