package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	registryHost = "registry.test" // what the registry is called at nodes; it resolves nowhere
	tag          = "v1"
	liveImages   = 10 // that clients pull; the oldest makes room for the next
	keptImages   = 24 // that the registry still has, for what is under way
)

// thing is a blob or a manifest.
type thing struct {
	mediaType string
	digest    digest.Digest
	bytes     []byte
	common    bool // other images have it too
}

func newThing(mediaType string, p []byte) thing {
	return thing{mediaType: mediaType, digest: digest.FromBytes(p), bytes: p}
}

// noiseLayer makes a layer of so many random bytes.
func noiseLayer(noise *rand.ChaCha8, size int) thing {
	p := make([]byte, size)
	_, _ = noise.Read(p)
	return newThing(ocispec.MediaTypeImageLayer, p)
}

// image is what is pulled: a repository with one tag. Clients know each byte of it.
type image struct {
	name     string
	right    string // the one Authorization that opens it; "" is everybody's
	manifest thing
	blobs    []thing       // the config, and layers
	made     time.Duration // when it was pushed
}

func (i *image) private() bool { return i.right != "" }

func (i *image) path(kind string, name string) string {
	return "/v2/" + i.name + "/" + kind + "/" + name
}

// makeImage makes the image of a number. Public ones have their first layer in common; every third is private, by a
// password or a token. Layers are of one chunk, a few of them, and every fifth image has one of several stripes.
func makeImage(seed uint64, number int) *image {
	key := [32]byte{1}
	binary.LittleEndian.PutUint64(key[8:], seed)
	binary.LittleEndian.PutUint64(key[16:], uint64(number))
	noise := rand.NewChaCha8(key)
	rng := rand.New(noise)
	img := &image{name: fmt.Sprintf("public/app%d", number)}
	if number%3 == 2 {
		img.name = fmt.Sprintf("private/app%d", number)
		if img.right = "Basic " + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "user:password-%d-%d", seed, number)); number%2 == 0 {
			img.right = "Bearer " + token(fmt.Sprintf("%d-%d", seed, number), time.Now().Add(24*time.Hour))
		}
	}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"},"number":%d}`, number)
	img.blobs = append(img.blobs, newThing(ocispec.MediaTypeImageConfig, config))
	if !img.private() {
		common := noiseLayer(rand.NewChaCha8([32]byte{2, byte(seed)}), 1500e3)
		common.common = true
		img.blobs = append(img.blobs, common)
	}
	img.blobs = append(img.blobs, noiseLayer(noise, 1000+rng.IntN(200e3)), noiseLayer(noise, 1e6+rng.IntN(3e6)))
	if number%5 == 3 {
		img.blobs = append(img.blobs, noiseLayer(noise, 6e6+rng.IntN(4e6)))
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, b := range img.blobs {
		d := ocispec.Descriptor{MediaType: b.mediaType, Digest: b.digest, Size: int64(len(b.bytes))}
		if i == 0 {
			m.Config = d
		} else {
			m.Layers = append(m.Layers, d)
		}
	}
	p, _ := json.Marshal(m)
	img.manifest = newThing(m.MediaType, p)
	return img
}

// token is a JSON Web Token (RFC 7519) that says when it ends. The registry knows it by its text.
func token(note string, expires time.Time) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(fmt.Appendf(nil, `{"exp":%d,"note":%q}`, expires.Unix(), note)) + ".sig"
}

// images are those that clients pull. It is safe for concurrent use.
type images struct {
	mu   sync.Mutex
	live []*image // the newest last
}

func (s *images) add(img *image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live = append(s.live, img); len(s.live) > liveImages {
		s.live = s.live[1:]
	}
}

func (s *images) all() []*image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.live)
}

// pick draws an image, a new one more likely than an old one.
func (s *images) pick(rng *rand.Rand) *image {
	all := s.all()
	return all[len(all)-1-min(rng.IntN(len(all)), rng.IntN(len(all)))]
}
