package rebuild

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// A file that has changed is like the one of its name in an older layer, though no chunk of it be the same: a program
// that was built anew has the same code at other addresses. So what comes of it is compressed with a dictionary (RFC 8878,
// section 5) of what is there of the older file, which the hub has too.

const (
	// around is how many bytes before and behind a chunk's place in its file are looked at in the older file.
	around     = cdc.NormalSize
	mostAround = 2 * (cdc.MaxSize + 2*around) / cdc.MinSize // chunks, of which a sound map has half as many there
	// mostLike is how many chunks a map may have of which there are to be dictionaries: 50 MB of memory.
	mostLike = 1 << 18
	// likeSaves is the share that a dictionary saves of contents, at least: of a Debian's security updates it is 0.7.
	likeSaves = 0.5
)

// dictionaries find for chunks of a tar what is like them in older layers.
type dictionaries struct {
	m     *cdc.Map
	files []file
	has   map[toc.Digest]bool // the chunks of m, of which none is of use
	older []*oldFiles
	added int // calls of add
}

// oldMap is an older layer, of which not all need be here.
type oldMap struct {
	layer digest.Digest
	*cdc.Map
	has func(c *cdc.Chunk) bool
	// read returns chunks that are here, given by their numbers in order, one after the other.
	read func(ctx context.Context, chunks []int) ([]byte, error)
}

// oldFiles are the files of an older layer.
type oldFiles struct {
	oldMap
	byName map[string]file
}

// dictionary is what a hub is told of one. Its bytes are had when they are needed.
type dictionary struct {
	layer  digest.Digest
	chunks string // as of FormatChunks
	bytes  func(ctx context.Context) ([]byte, error)
}

func newDictionaries(m *cdc.Map) *dictionaries {
	d := &dictionaries{m: m}
	if len(m.Chunks) > mostLike {
		return d
	}
	d.files, d.has = filesOf(m), make(map[toc.Digest]bool, len(m.Chunks))
	for i := range m.Chunks {
		if c := &m.Chunks[i]; c.Inline == nil {
			d.has[c.Digest] = true
		}
	}
	return d
}

// add adds an older layer.
func (d *dictionaries) add(old oldMap) {
	d.added++
	if len(old.Chunks) > mostLike || len(d.m.Chunks) > mostLike {
		return
	}
	o := &oldFiles{old, make(map[string]file)}
	for _, f := range filesOf(old.Map) {
		o.byName[f.name] = f
	}
	d.older = append(d.older, o)
}

// of returns a dictionary for chunks, given by their numbers; nil if there is nothing like them. It is of one older layer: the
// one that has files of the names of most of them.
func (d *dictionaries) of(chunks []int) *dictionary {
	o := d.likest(chunks)
	if o == nil {
		return nil
	}
	var like []int
	for _, i := range chunks {
		like = append(like, d.like(o, i)...)
	}
	slices.Sort(like)
	like = slices.Compact(like)
	if like = like[:(&line{m: o.Map}).fit(like, MaxContents)]; len(like) == 0 {
		return nil
	}
	return &dictionary{o.layer, FormatChunks(like, o.Map), func(ctx context.Context) ([]byte, error) { return o.read(ctx, like) }}
}

func (d *dictionaries) likest(chunks []int) *oldFiles {
	if len(d.older) == 0 {
		return nil
	}
	o := slices.MaxFunc(d.older, func(a, b *oldFiles) int { return cmp.Compare(d.namedIn(a, chunks), d.namedIn(b, chunks)) })
	if d.namedIn(o, chunks) == 0 {
		return nil
	}
	return o
}

// named returns how many bytes of chunks are of files of which an older layer has one of the name.
func (d *dictionaries) named(chunks []int) int64 {
	o := d.likest(chunks)
	if o == nil {
		return 0
	}
	return d.namedIn(o, chunks)
}

func (d *dictionaries) namedIn(o *oldFiles, chunks []int) (n int64) {
	for _, i := range chunks {
		if f := at(d.files, d.m.Chunks[i].Offset); f != nil && o.byName[f.name].end > 0 {
			n += d.m.Chunks[i].Size
		}
	}
	return n
}

// like returns the chunks of an older layer that are about where one is in its file, and that d.m has not.
func (d *dictionaries) like(o *oldFiles, i int) (all []int) {
	c := &d.m.Chunks[i]
	f := at(d.files, c.Offset)
	if f == nil {
		return nil
	}
	old, ok := o.byName[f.name]
	if !ok {
		return nil
	}
	start := old.start + c.Offset - f.start
	start, end := max(old.start, min(start, old.end)-around), min(old.end, start+c.Size+around)
	for k := o.Find(start); k < len(o.Chunks) && o.Chunks[k].Offset < end && len(all) < mostAround; k++ {
		if c := &o.Chunks[k]; c.Inline != nil || d.has[c.Digest] || !o.has(c) {
			continue
		}
		all = append(all, k)
	}
	return all
}

// dictionaryID names a dictionary by what it has, for who packs and who unpacks to mean the same one. It is one of those that
// are not reserved (RFC 8878, section 5).
func dictionaryID(p []byte) uint32 {
	const least, end = 1 << 15, 1 << 31
	sum := sha256.Sum256(p)
	return least + binary.BigEndian.Uint32(sum[:])%(end-least)
}

// dictionaryOf returns which dictionary an answer is compressed with, 0 for none.
func dictionaryOf(p []byte) uint32 {
	var h zstd.Header
	if h.Decode(p) != nil {
		return 0
	}
	return h.DictionaryID
}
