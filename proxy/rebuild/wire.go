package rebuild

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/recipe"
)

// What a hub is asked, behind /v2/<name>/ and before the layer's digest, and what it answers.
const (
	// OfferPath is asked for an offer: a body of EncodeOffer of the media type OfferType.
	OfferPath = "_granary/recipe/"
	OfferType = "application/vnd.granary.recipe.v1"
	// ContentsPath is asked for the map of what the layer unpacks to: packed, of the media type MapType.
	ContentsPath = "_granary/contents/"
	MapType      = "application/vnd.granary.contents-map.v1+zstd"
	// With a parameter ChunksQuery of FormatChunks it is asked for some of the chunks. The body is
	// their bytes, one chunk after the other, in zstd.
	ContentsType = "application/vnd.granary.contents.v1+zstd"
	ChunksQuery  = "chunks"
	// DictionaryQuery is an older layer, and DictionaryChunksQuery some of its chunks, as of FormatChunks: the asker has
	// these, and the body may be compressed with all of them as its dictionary, raw content of the ID that dictionaryID
	// has for it. Who does not know them, has not got them, or finds that they are not for the asker, leaves it at that.
	DictionaryQuery       = "dictionary"
	DictionaryChunksQuery = "dictionary-chunks"
)

// Limits of what is asked at once, and of what is answered.
const (
	// MaxOffer is how many bytes an offer has at the most, as it is sent and as it is decompressed: a large map.
	MaxOffer = cdc.MaxPacked
	// MaxRanges, MaxChunks and MaxContents are how many ranges of chunks, how many chunks, and
	// how many bytes of them, not compressed, a request for contents may name, and for their dictionary as many.
	MaxRanges   = 256
	MaxChunks   = 1024
	MaxContents = 4 << 20
)

// Offer is what a layer is made again by.
type Offer struct {
	Recipe *recipe.Recipe
	Map    *cdc.Map // of what the recipe is followed with
}

// An offer is sent as, all of it in zstd:
//
//	          size of the recipe, as a varint (encoding/binary)
//	          the recipe, encoded
//	          the map, encoded

// EncodeOffer returns an offer as it is sent. The error wraps [toc.ErrLimit] when it would be larger than
// MaxOffer, or [toc.ErrMalformed] when recipe and map are of different tars, as far as sizes tell.
func EncodeOffer(r *recipe.Recipe, m *cdc.Map) ([]byte, error) {
	if err := agree(r, m); err != nil {
		return nil, err
	}
	how, err := r.Encode()
	if err != nil {
		return nil, fmt.Errorf("offer: %w", err)
	}
	p := binary.AppendUvarint(nil, uint64(len(how)))
	p = m.Append(append(p, how...))
	if len(p) > MaxOffer {
		return nil, fmt.Errorf("offer: %w: %d bytes", toc.ErrLimit, len(p))
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("offer: %w", err)
	}
	packed := z.EncodeAll(p, nil)
	if len(packed) > MaxOffer {
		return nil, fmt.Errorf("offer: %w: %d bytes as it is sent", toc.ErrLimit, len(packed))
	}
	return packed, nil
}

// DecodeOffer returns the offer that p is the encoding of. It takes up to some 400 MB of memory while p is one
// of MaxOffer. The error wraps [toc.ErrFormat], [toc.ErrLimit] or [toc.ErrMalformed].
func DecodeOffer(p []byte) (Offer, error) {
	if len(p) > MaxOffer {
		return Offer{}, fmt.Errorf("offer: %w: more than %d bytes", toc.ErrLimit, MaxOffer)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxOffer))
	if err != nil {
		return Offer{}, fmt.Errorf("offer: %w", err)
	}
	defer z.Close()
	p, err = z.DecodeAll(p, nil)
	if err != nil {
		return Offer{}, fmt.Errorf("offer: %w: %w", toc.ErrMalformed, err)
	}
	size, n := binary.Uvarint(p)
	if n <= 0 || size > uint64(len(p)-n) {
		return Offer{}, fmt.Errorf("offer: %w: no size of a recipe, or more than all", toc.ErrMalformed)
	}
	p = p[n:]
	return decodeParts(p[:size:size], p[size:])
}

func decodeParts(how, chunks []byte) (o Offer, err error) {
	if o.Recipe, err = recipe.Decode(how); err != nil {
		return Offer{}, fmt.Errorf("offer: %w", err)
	}
	if o.Map, err = cdc.Decode(chunks); err != nil {
		return Offer{}, fmt.Errorf("offer: %w", err)
	}
	if err := agree(o.Recipe, o.Map); err != nil {
		return Offer{}, err
	}
	return o, nil
}

// agree reports a recipe and a map that cannot be of the same tar.
func agree(r *recipe.Recipe, m *cdc.Map) error {
	if tar := r.TarSize(); tar != m.Size() {
		return fmt.Errorf("offer: %w: a recipe for a tar of %d bytes, and a map of %d", toc.ErrMalformed, tar, m.Size())
	}
	return nil
}

// FormatChunks returns what asks for chunks of m, given by their numbers in ascending order, none of them inline:
// as in 3-17,20. A range does not name those that are inline and stand in it.
func FormatChunks(chunks []int, m *cdc.Map) string {
	var b strings.Builder
	for len(chunks) > 0 {
		n := rangeOf(chunks, m)
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(chunks[0]))
		if n > 1 {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(chunks[n-1]))
		}
		chunks = chunks[n:]
	}
	return b.String()
}

// rangeOf returns how many of the chunks a range from the first of them on has.
func rangeOf(chunks []int, m *cdc.Map) int {
	n := 1
	for n < len(chunks) && isNext(chunks[n-1], chunks[n], m) {
		n++
	}
	return n
}

// isNext reports whether there is no chunk between two, other than one that is inline: there are no two
// of these in a row.
func isNext(a, b int, m *cdc.Map) bool {
	return b == a+1 || b == a+2 && m.Chunks[a+1].Inline != nil
}

// ParseChunks returns the numbers of the chunks of m that a request names, in ascending order. The error wraps
// [toc.ErrLimit] when they are too many, or too large, and [toc.ErrMalformed] when they are not named in
// order, or a range begins or ends with none of m, or with one that is inline.
func ParseChunks(query string, m *cdc.Map) ([]int, error) {
	ranges := strings.SplitN(query, ",", MaxRanges+1)
	if len(ranges) > MaxRanges {
		return nil, fmt.Errorf("chunks: %w: more than %d ranges", toc.ErrLimit, MaxRanges)
	}
	var all []int
	size, next := int64(0), 0
	for _, s := range ranges {
		first, last, err := parseRange(s)
		if err != nil {
			return nil, err
		}
		if first < next || last >= len(m.Chunks) || m.Chunks[first].Inline != nil || m.Chunks[last].Inline != nil {
			return nil, fmt.Errorf("chunks: %w: %q, of %d chunks, behind number %d: not in order, or inline", toc.ErrMalformed, s, len(m.Chunks), next-1)
		}
		for i := first; i <= last; i++ {
			if m.Chunks[i].Inline != nil {
				continue
			}
			if size += m.Chunks[i].Size; len(all) == MaxChunks || size > MaxContents {
				return nil, fmt.Errorf("chunks: %w: more than %d chunks, or %d bytes", toc.ErrLimit, MaxChunks, MaxContents)
			}
			all = append(all, i)
		}
		next = last + 1
	}
	return all, nil
}

// parseRange reads a range, as in 3-17, or a number, which is one of that alone.
func parseRange(s string) (first, last int, err error) {
	from, to, isRange := strings.Cut(s, "-")
	first, err = parseNumber(from)
	if last = first; isRange && err == nil {
		last, err = parseNumber(to)
	}
	if err != nil || isRange && last <= first {
		return 0, 0, fmt.Errorf("chunks: %w: %.20q is no range", toc.ErrMalformed, s)
	}
	return first, last, nil
}

// parseNumber reads what strconv.Itoa writes of a chunk's number.
func parseNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || strconv.Itoa(n) != s {
		return 0, toc.ErrMalformed
	}
	return n, nil
}
