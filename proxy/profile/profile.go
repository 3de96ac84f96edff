package profile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Limits of a profile.
const (
	MaxSize   = 2 << 20  // bytes, as it is encoded
	maxJSON   = 64 << 20 // bytes, before that
	maxFiles  = 1 << 15
	maxRanges = 64      // of a file
	maxPath   = 4096    // bytes: PATH_MAX
	maxFile   = 1 << 43 // bytes of a file: 8 TiB
)

// history is how many runs are remembered, and often in how many of these a file has
// to have been read to be likely: a quarter.
const (
	history = 8
	often   = 4
)

// Range is a run of a file, in bytes.
type Range struct {
	Offset int64 `json:"o"`
	Size   int64 `json:"n"`
}

func (r Range) end() int64 { return r.Offset + r.Size }

func (r Range) sane() bool {
	return r.Offset >= 0 && r.Offset <= maxFile && r.Size > 0 && r.Size <= maxFile
}

// Place is where in the layer a content is that was read, as it is stored there.
type Place struct {
	Range
	Digest  []byte `json:"d"` // of the content: SHA-256
	Content int64  `json:"c"` // bytes of the content
}

// File is what was read of a file of a layer.
type File struct {
	Layer  digest.Digest `json:"layer"`
	Path   string        `json:"path"` // in the layer
	Ranges []Range       `json:"ranges"`
	// Places are where the contents are that were read, in order, if that is known.
	Places []Place `json:"places,omitempty"`
	// Runs has a bit for each of the last runs, the lowest for the last one: whether it
	// has read the file.
	Runs uint8 `json:"runs"`
}

// Profile is what the last runs of an image have read. The zero value is that of an
// image that was never run.
type Profile struct {
	Runs  int    `json:"runs"` // that are remembered, at most 8
	Files []File `json:"files"`
}

type fileKey struct {
	layer digest.Digest
	path  string
}

// Add returns the profile with a run of which run is the record. If the run is said to
// be the last one again, it takes its own place.
func (p Profile) Add(run []File, again bool) Profile {
	added := Profile{Runs: p.Runs}
	shift := 0
	if !again || p.Runs == 0 {
		added.Runs, shift = min(p.Runs+1, history), 1
	}
	at := make(map[fileKey]int)
	for _, f := range run { // whose order is what is known best
		f.Runs = 1
		at[fileKey{f.Layer, f.Path}] = len(added.Files)
		added.Files = append(added.Files, f)
	}
	for _, f := range p.Files {
		f.Runs <<= shift
		i, ok := at[fileKey{f.Layer, f.Path}]
		switch {
		case ok:
			now := &added.Files[i]
			now.Runs |= f.Runs
			now.Ranges = join(slices.Concat(now.Ranges, f.Ranges))
			now.Places = places(slices.Concat(now.Places, f.Places))
		case f.Runs != 0:
			added.Files = append(added.Files, f)
		}
	}
	added.Files = added.Files[:min(len(added.Files), maxFiles)]
	return added
}

// Likely returns what the next run is likely to read: what at least a quarter of the
// last ones have, in order.
func (p Profile) Likely() []File {
	var likely []File
	for _, f := range p.Files {
		if bits.OnesCount8(f.Runs)*often >= p.Runs {
			likely = append(likely, f)
		}
	}
	return likely
}

// places returns places in order, each once, and none if there are too many.
func places(all []Place) []Place {
	slices.SortFunc(all, func(a, b Place) int { return cmp.Compare(a.Offset, b.Offset) })
	all = slices.CompactFunc(all, func(a, b Place) bool { return a.Offset == b.Offset })
	if len(all) > maxRanges {
		return nil
	}
	return all
}

// join returns ranges in order, those that touch as one. Of too many the nearest are
// joined.
func join(all []Range) []Range {
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	joined := joinWithin(all, 0)
	for gap := int64(4 << 10); len(joined) > maxRanges; gap *= 2 {
		joined = joinWithin(joined, gap)
	}
	return joined
}

// joinWithin joins ranges, which are in order, that are up to gap bytes apart.
func joinWithin(all []Range, gap int64) (joined []Range) {
	for _, r := range all {
		if n := len(joined); n > 0 && r.Offset <= joined[n-1].end()+gap {
			joined[n-1].Size = max(joined[n-1].end(), r.end()) - joined[n-1].Offset
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// Encode returns the profile as it is kept and sent: JSON, in zstd.
func (p Profile) Encode() ([]byte, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	defer z.Close()
	packed := z.EncodeAll(text, nil)
	if len(packed) > MaxSize || len(text) > maxJSON {
		return nil, fmt.Errorf("profile: it takes %d bytes", len(packed))
	}
	return packed, nil
}

// Decode is the inverse of [Profile.Encode], for a profile that anybody may have made.
func Decode(packed []byte) (p Profile, err error) {
	if len(packed) > MaxSize {
		return p, fmt.Errorf("profile: it takes %d bytes", len(packed))
	}
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxJSON))
	if err != nil {
		return p, fmt.Errorf("profile: %w", err)
	}
	defer z.Close()
	if err := json.NewDecoder(io.LimitReader(z, maxJSON)).Decode(&p); err != nil {
		return Profile{}, fmt.Errorf("profile: %w", err)
	}
	if err := p.check(); err != nil {
		return Profile{}, fmt.Errorf("profile: %w", err)
	}
	return p, nil
}

func (p Profile) check() error {
	if p.Runs < 0 || p.Runs > history || len(p.Files) > maxFiles {
		return fmt.Errorf("%d runs, %d files", p.Runs, len(p.Files))
	}
	seen := make(map[fileKey]bool, len(p.Files))
	for _, f := range p.Files {
		if key := (fileKey{f.Layer, f.Path}); seen[key] {
			return errors.New("a file is there twice")
		} else {
			seen[key] = true
		}
		if f.Layer.Validate() != nil || f.Path == "" || len(f.Path) > maxPath || len(f.Ranges) > maxRanges {
			return errors.New("a file makes no sense")
		}
		end := int64(0)
		for _, r := range f.Ranges {
			if r.Offset < end || !r.sane() {
				return errors.New("a range makes no sense")
			}
			end = r.end()
		}
		if len(f.Places) > maxRanges || slices.ContainsFunc(f.Places, func(p Place) bool { return !p.sane() || len(p.Digest) != 32 || p.Content < 0 }) {
			return errors.New("a place makes no sense")
		}
	}
	return nil
}
