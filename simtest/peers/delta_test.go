package peers

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
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
	if most := int64(len(changes)) * chunk.Size; fetched > most {
		t.Errorf("%d bytes were fetched of a blob of which %d have changed", fetched, most)
	}
	if served := m.Status().Served["disk"] - disk; served < (chunks-int64(len(changes)))*chunk.Size {
		t.Errorf("%d bytes came from disk", served)
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
