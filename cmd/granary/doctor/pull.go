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
	// Path says it of each chunk, in order.
	Path []Stretch `json:"path"`
}

// Stretch are chunks next to each other that came from one source.
type Stretch struct {
	First  int    `json:"first"` // by position in the blob
	Last   int    `json:"last"`
	Source string `json:"source"`
}

// Came adds the next chunk of the blob.
func (b *PulledBlob) Came(source string) {
	b.Chunks[source]++
	n := len(b.Path)
	switch {
	case n > 0 && b.Path[n-1].Source == source:
		b.Path[n-1].Last++
	case n > 0:
		next := b.Path[n-1].Last + 1
		b.Path = append(b.Path, Stretch{next, next, source})
	default:
		b.Path = append(b.Path, Stretch{Source: source})
	}
}

// PathText says where each chunk came from, as in "0-3 disk, 4 peer".
func (b *PulledBlob) PathText() string {
	var parts []string
	for _, s := range b.Path {
		chunks := fmt.Sprint(s.First)
		if s.Last > s.First {
			chunks = fmt.Sprintf("%d-%d", s.First, s.Last)
		}
		parts = append(parts, chunks+" "+s.Source)
	}
	return strings.Join(parts, ", ")
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
