package main

import "testing"

// bounds are how much of a layer, in bytes, leaves the registry for a format.
type bounds struct {
	list  float64 // at most this part of the image
	small int64   // bytes at most for 4 KiB
	large float64 // at most this part of the last layer, for the large file: where two reads meet, some is moved twice
}

// In these the table is in one place, and contents are by themselves.
var byTable = bounds{list: 0.02, small: 128 << 10, large: 1.05}

// allowed are the bounds of all formats. Headers of a tar are between its files, and
// of EROFS's inodes many are too: of small files much is moved to list them. An
// ordinary layer that is compressed has to be read once to know what is in it, and
// manifests are beside it; then it is here.
var allowed = map[string]bounds{
	"tar":           {list: 0.6, small: 128 << 10, large: 1.05},
	"gzip":          {list: 1.03},
	"gzip-members":  {list: 1.03},
	"zstd":          {list: 1.03},
	"estargz":       byTable,
	"zstd-stargz":   byTable,
	"zstd-storage":  byTable,
	"erofs":         {list: 0.6, small: 128 << 10, large: 1.05},
	"squashfs-gzip": byTable,
	"squashfs-zstd": byTable,
	"squashfs-xz":   byTable,
}

// maxRequests is how many requests a file of 16 MiB takes: each for a chunk of 1 MiB
// or more, but for the first ones.
const maxRequests = 26

func TestMovesASmallPart(t *testing.T) {
	l := theLab(t)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			c, err := l.measure(t.Context(), f.name)
			if err != nil {
				t.Fatal(err)
			}
			img, may := l.images[f.name], allowed[f.name]
			check := func(what string, got, most int64) {
				if got > most {
					t.Errorf("%s: %d, want at most %d", what, got, most)
				}
			}
			check("bytes to list the image", c.list.blobs, int64(may.list*float64(img.size())))
			check("bytes to read 4 KiB", c.small.blobs, may.small)
			check("bytes to read 16 MiB", c.large.blobs, int64(may.large*float64(img.top().Size)))
			check("requests to read 16 MiB", c.large.requests, maxRequests)
		})
	}
}
