package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/opencontainers/go-digest"
)

// Pull is a test pull.
type Pull struct {
	Image   string        `json:"image"`
	Digest  digest.Digest `json:"digest"` // of the manifest
	Blobs   []PulledBlob  `json:"blobs"`
	Bytes   int64         `json:"bytes"`
	Seconds float64       `json:"seconds"`
	Cut     bool          `json:"cut,omitempty"` // not all of it was pulled: it is too large for a test
}

// PulledBlob is a blob of a test pull.
type PulledBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	// Chunks counts those that came from each source: memory, disk, peer, layout, upstream.
	Chunks map[string]int `json:"chunks"`
}

// Sources counts the chunks of all blobs.
func (p *Pull) Sources() map[string]int {
	all := make(map[string]int)
	for _, b := range p.Blobs {
		for source, n := range b.Chunks {
			all[source] += n
		}
	}
	return all
}

// SourcesText lists where chunks came from, as in "disk 3, peer 1".
func SourcesText(chunks map[string]int) string {
	var parts []string
	for _, source := range slices.Sorted(maps.Keys(chunks)) {
		parts = append(parts, fmt.Sprintf("%s %d", source, chunks[source]))
	}
	return strings.Join(parts, ", ")
}

// pull pulls an image, the one named or one that the node knows.
func (p *patient) pull(ctx context.Context) (*Pull, []Finding) {
	image := p.Image
	if image == "" {
		image = p.reach.Image
	}
	if image == "" || p.Config.Pull == nil {
		return nil, []Finding{{"pull", "", Note, "no image was pulled", "name a small one with --image"}}
	}
	pulled, err := p.Config.Pull(ctx, image)
	if err != nil {
		return nil, []Finding{{"pull", image, Error, err.Error(), "see what is wrong with its registry or the cluster above; if the image is private, log in for granary pull"}}
	}
	return pulled, []Finding{{"pull", image, OK, fmt.Sprintf("%s in %.1f s; chunks: %s", humanize.IBytes(uint64(pulled.Bytes)), pulled.Seconds, SourcesText(pulled.Sources())), ""}}
}
