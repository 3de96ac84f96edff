package main

import (
	"encoding/json"
	"testing"

	"github.com/granary-oci/granary/toc"
)

// A site that has nothing but a parent reads images of all formats there: those that are tars by the chunks that they
// unpack to, others by their bytes.
func TestImagesOfAParent(t *testing.T) {
	theLab(t)
	hub := serve(t)
	for _, f := range formats {
		switch f.name {
		case "zstd", "squashfs-zstd", "squashfs-xz":
			continue // of these it is read as of any registry
		}
		t.Run(f.name, func(t *testing.T) {
			hub.mustRun(t, "preheat", "--wait", f.name+":v1")
			n := serve(t, "--parent", hub.url, "--parents-only")
			checkListing(t, parse(t, n.mustRun(t, "ls", "-R", "--json", f.name+":v1")), disk, f.seconds)
			checkCat(t, func(path string) ([]byte, error) { return n.run(t.Context(), "cat", f.name+":v1", path) })
			i := 0
			n.checkContents(t, f.name, shared.images[f.name], func(toc.File) bool { i++; return i%5 == 0 })
			var status struct{ WAN struct{ Asked int64 } }
			p, _, err := fetch(t.Context(), n.admin+"/api/v1/status")
			if err == nil {
				err = json.Unmarshal(p, &status)
			}
			if err != nil {
				t.Fatal(err)
			}
			if byChunks := f.known != "erofs" && f.known != "squashfs"; byChunks != (status.WAN.Asked > 0) {
				t.Errorf("chunks of %d bytes of it were asked for", status.WAN.Asked)
			}
		})
	}
}
