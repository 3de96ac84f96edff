// Package dashboard is the page that shows people a node and its cluster. It is the same for
// everybody: what it shows it asks of /api/v1, as whoever looks at it, and it keeps a token
// that it needs for that no longer than its tab is open. It loads nothing from elsewhere, and
// its policy (Content Security Policy Level 3) lets it run nothing but its own files.
package dashboard

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"mime"
	"net/http"
	"path"
	"time"
)

//go:embed page
var files embed.FS

// policy lets the page load its own files and ask this node, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Pages returns what is to be answered at each path below the root of a host.
func Pages() map[string]http.HandlerFunc {
	all := make(map[string]http.HandlerFunc)
	entries, err := files.ReadDir("page")
	if err != nil {
		panic(err) // it is part of this program
	}
	for _, e := range entries {
		p, err := files.ReadFile(path.Join("page", e.Name()))
		if err != nil {
			panic(err)
		}
		at := "/dashboard/" + e.Name()
		if e.Name() == "index.html" {
			at = "/"
		}
		all[at] = serve(e.Name(), p)
	}
	return all
}

func serve(name string, p []byte) http.HandlerFunc {
	sum := sha256.Sum256(p)
	etag := `"` + hex.EncodeToString(sum[:16]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
		h.Set("Content-Security-Policy", policy)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
	}
}
