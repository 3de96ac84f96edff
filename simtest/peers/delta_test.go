package peers

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/simtest/peers/hostile"
)

// pushArtifact makes an artifact that is no image: one blob of a type that nobody knows, and
// the empty config (image-spec, "Guidance for an Empty Descriptor").
func (r *registry) pushArtifact(repository, tag string, blob []byte) *image {
	const empty = "application/vnd.oci.empty.v1+json"
	img := &image{repository: repository, tag: tag, blobs: make(map[digest.Digest][]byte)}
	add := func(mediaType string, p []byte) map[string]any {
		d := digest.FromBytes(p)
		img.blobs[d] = p
		img.order = append(img.order, d)
		r.set(func() { r.content[repository+"/blobs/"+string(d)] = p })
		return map[string]any{"mediaType": mediaType, "digest": d, "size": len(p)}
	}
	config := add(empty, []byte("{}"))
	model := add("application/octet-stream", blob)
	m, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "artifactType": "application/vnd.example.model", "config": config, "layers": []any{model},
	})
	img.manifest = r.pushManifest(repository, tag, manifestType, m)
	img.top = img.manifest
	return img
}

// changed returns a blob with other bytes in some of its chunks.
func changed(p []byte, chunks ...int) []byte {
	q := bytes.Clone(p)
	for _, i := range chunks {
		copy(q[i*chunk.Size+i:], "these are other bytes than before")
	}
	return q
}

// got returns how many bytes of chunks a member has had from others, and from the registry.
func (m *member) got() (peers, upstream int64) {
	s := m.Status()
	for _, known := range s.Cluster.Members {
		peers += known.Received
	}
	return peers, s.Received
}

// TestAnArtifactIsSharedByStripes as layers are: it leaves the registry once, and not for one
// member alone.
func TestAnArtifactIsSharedByStripes(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.delay, r.rate = 20*time.Millisecond, 16<<20
	model := r.pushArtifact("model", "v1", random(48<<20, 40))
	c := newCluster(t, r, 3)
	pullAtOnce(t, model, 1, c.members...)
	if sent := r.sent.Load(); sent > model.size()*5/4 && !slow {
		t.Errorf("%d bytes left the registry, of %d", sent, model.size())
	}
	for i, m := range c.members {
		if peers, upstream := m.got(); upstream > model.size()-chunk.StripeSize {
			t.Errorf("node %d has %d bytes from the registry, and %d from others", i+1, upstream, peers)
		}
	}
}

// TestOfABlobThatHasChangedInPlaceOnlyTheChangesCome: a member has the first version of a
// model, another one has the second.
func TestOfABlobThatHasChangedInPlaceOnlyTheChangesCome(t *testing.T) {
	t.Parallel()
	const chunks = 64
	r := newRegistry(t)
	model := random(chunks*chunk.Size+1000, 41)
	changes := []int{5, 6, 40, chunks} // 5 %, the last chunk among them
	v1, v2 := r.pushArtifact("model", "v1", model), r.pushArtifact("model", "v2", changed(model, changes...))
	c := newCluster(t, r, 1)
	has := c.members[0]
	pullAtOnce(t, v2, 1, has)
	m := c.join()
	pullAtOnce(t, v1, 1, m)
	time.Sleep(time.Second) // it is announced who has v2
	peers, upstream := m.got()
	disk := m.Status().Served["disk"]
	pullAtOnce(t, v2, 1, m)
	nowPeers, nowUpstream := m.got()
	fetched := nowPeers - peers + nowUpstream - upstream
	t.Logf("%d bytes came from members, %d from the registry, of %d", nowPeers-peers, nowUpstream-upstream, v2.size())
	if most := int64(len(changes)) * chunk.Size; fetched > most && !slow {
		t.Errorf("%d bytes were fetched of a blob of which %d have changed", fetched, most)
	}
	if served := m.Status().Served["disk"] - disk; served < (chunks-int64(len(changes)))*chunk.Size && !slow {
		t.Errorf("%d bytes came from disk", served)
	}
	// The disk has what they share once, if its file system can.
	if kept := m.Status().Store; kept.Bytes+kept.Shared < v1.size()+v2.size() {
		t.Errorf("%d bytes are kept, and %d shared, of two versions of %d", kept.Bytes, kept.Shared, v2.size())
	} else {
		t.Logf("two versions take %d bytes, and share %d", kept.Bytes, kept.Shared)
	}
	// All of it is there now, and as good as any.
	r.kill()
	c.stop(has)
	pullAtOnce(t, v2, 1, m)
	for _, known := range m.Status().Cluster.Members {
		if known.Strikes > 0 {
			t.Errorf("a member is blamed: %s", known.Fault)
		}
	}
}

// TestOfABlobThatRuntimesKeepOnlyTheChangesCome: neither of two nodes keeps anything itself, but
// the runtime of one has the first version of a model, and that of the other one the second.
func TestOfABlobThatRuntimesKeepOnlyTheChangesCome(t *testing.T) {
	t.Parallel()
	const chunks = 32
	r := newRegistry(t)
	model := random(chunks*chunk.Size, 42)
	v1, v2 := r.pushArtifact("model", "v1", model), r.pushArtifact("model", "v2", changed(model, 3, 20))
	c := newCluster(t, r, 0)
	start := func(img *image) *member {
		theirs := newRuntime(t)
		m := c.start(theirs.besides("none"))
		pullAtOnce(t, img, 1, m)
		for d, p := range img.blobs {
			theirs.keep(d, p)
		}
		pullAtOnce(t, img, 1, m) // from there: it is checked
		return m
	}
	start(v2)
	m := start(v1)
	c.meet()
	time.Sleep(time.Second) // it is announced who has v2
	peers, upstream := m.got()
	pullAtOnce(t, v2, 1, m)
	nowPeers, nowUpstream := m.got()
	if fetched := nowPeers - peers + nowUpstream - upstream; fetched > 3*chunk.Size && !slow {
		t.Errorf("%d bytes were fetched of a blob of which 2 chunks have changed", fetched)
	}
	if kept := m.Status().Store.Bytes; kept >= chunk.Size {
		t.Errorf("a node that keeps nothing keeps %d bytes", kept)
	}
}

const modelChunks = 24

var oldModel = sync.OnceValue(func() []byte { return random(modelChunks*chunk.Size, 43) })

// newModels are versions of a model after the first, in a registry.
type newModels struct {
	*cluster
	n int
}

// next makes another one, and returns where it is.
func (v *newModels) next() (p []byte, path string) {
	v.n++
	p = changed(oldModel(), 9, 17)
	p[9*chunk.Size] = byte(v.n)
	img := v.registry.pushArtifact("model", fmt.Sprint("v", v.n), p)
	return p, img.path(img.order[1])
}

// withHostileMaps starts a member that has the first version of a model, and a hostile one that
// says it has all others, of which it gives maps.
func withHostileMaps(t *testing.T, how hostile.Behaviour, changes ...func(*node.Config)) (*newModels, *member, *hostile.Member) {
	t.Helper()
	r := newRegistry(t)
	first := r.pushArtifact("model", "v0", oldModel())
	c := newCluster(t, r, 1, changes...)
	pullAtOnce(t, first, 1, c.members[0])
	h, _ := c.infiltrate(first, how)
	return &newModels{cluster: c}, c.members[0], h
}

// mapOf returns the digests of the first model's chunks, in place of chunk i those of chunk
// which(i).
func mapOf(which func(i int) int) func(first, n int) []byte {
	return func(first, n int) (digests []byte) {
		for i := range n {
			at := which(first+i) * chunk.Size
			d := sha256.Sum256(oldModel()[at : at+chunk.Size])
			digests = append(digests, d[:]...)
		}
		return digests
	}
}

// lies are maps of chunks that the node has, and the blob has not, or not there.
var lies = map[string]hostile.Behaviour{
	"nothing has changed": hostile.Mapping("", "quarantined", mapOf(func(i int) int { return i })),
	"permuted":            hostile.Mapping("", "quarantined", mapOf(func(i int) int { return max(i-1, 0) })),
	"one of all":          hostile.Mapping("", "quarantined", mapOf(func(int) int { return 0 })),
}

// TestAWrongMapIsFoundOut when the blob does not match, which no client takes for its end. Then
// the blob comes from the registry, and who gave the map is to blame.
func TestAWrongMapIsFoundOut(t *testing.T) {
	t.Parallel()
	for name, how := range lies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			models, m, h := withHostileMaps(t, how)
			var model []byte
			var path string
			eventually(t, "a map is used", func() bool {
				model, path = models.next()
				a := m.get(path)
				if a.err == nil && !bytes.Equal(a.body, model) {
					t.Errorf("a response of %d bytes that are wrong came to an end: %d", len(a.body), a.status)
				}
				return a.err != nil
			})
			if err := m.gives(model, path); err != nil {
				t.Errorf("the second response: %v", err)
			}
			eventually(t, "the giver of the map is in quarantine", func() bool { return m.known(h.ID()).State == "quarantined" })
			if !strings.Contains(m.metrics(), `granary_corrupt_total{source="peer"} 1`) {
				t.Error("the fault is not counted, once")
			}
			models.judges(m, h)
		})
	}
}

// TestAMapThatDoesNotComeFailsNothing, whatever comes in its place.
func TestAMapThatDoesNotComeFailsNothing(t *testing.T) {
	t.Parallel()
	for _, how := range hostile.Maps {
		t.Run(how.Name, func(t *testing.T) {
			t.Parallel()
			models, m, h := withHostileMaps(t, how)
			eventually(t, "the giver of the map is asked, and is "+how.State, func() bool {
				model, path := models.next()
				if err := m.gives(model, path); err != nil {
					t.Error(err)
				}
				return h.AskedForMaps() > 0 && m.known(h.ID()).State == how.State
			})
			models.judges(m, h)
		})
	}
}

// TestRangesThatRestOnTheUpstreamAloneHaveNothingOfAMap, though a complete response that is
// under way has.
func TestRangesThatRestOnTheUpstreamAloneHaveNothingOfAMap(t *testing.T) {
	models, m, _ := withHostileMaps(t, lies["nothing has changed"], func(c *node.Config) { c.UnprovenRanges = "upstream" })
	eventually(t, "a map is used", func() bool {
		model, path := models.next()
		resp, err := m.send(http.MethodGet, path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		read := make([]byte, 20*chunk.Size)
		if _, err := io.ReadFull(resp.Body, read); err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{9, 17} {
			from, to := i*chunk.Size, (i+1)*chunk.Size
			if err := m.gives(model[from:to], path, "Range", fmt.Sprintf("bytes=%d-%d", from, to-1)); err != nil {
				t.Errorf("chunk %d: %v", i, err)
			}
		}
		return bytes.Equal(read, oldModel()[:len(read)])
	})
}

// metrics returns what a node says of itself.
func (m *member) metrics() string {
	resp, err := client.Get(m.AdminURL() + "/metrics")
	if err != nil {
		return ""
	}
	p, _ := readAll(resp)
	return string(p)
}
