package programs

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Registry is one that a test has started.
type Registry struct {
	*Process
	Address, URL string
}

// Distribution starts the distribution registry, of Debian or newer as the program is, on
// what is in dir. auth is the section of its configuration that says who may read, or "".
func Distribution(t *testing.T, program, dir, auth string) *Registry {
	t.Helper()
	address := FreeAddress(t)
	config := Write(t, dir, "config.yml", fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"+
		"storage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %s}\n%s", filepath.Join(dir, "data"), address, auth))
	return Serving(t, address, program, "serve", config)
}

// Serving starts a registry that is told to serve at an address, and waits for it.
func Serving(t *testing.T, address, program string, args ...string) *Registry {
	t.Helper()
	r := &Registry{Process: Start(t, program, args...), Address: address, URL: "http://" + address}
	Eventually(t, program+" answers", func() bool {
		resp, err := http.Get(r.URL + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	return r
}

// PushBlob pushes a blob of so many bytes.
func (r *Registry) PushBlob(t *testing.T, repository string, d digest.Digest, size int64, content io.Reader) {
	t.Helper()
	resp, err := http.Post(r.URL+"/v2/"+repository+"/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		t.Fatalf("push: %s: %v", resp.Status, err)
	}
	q := to.Query()
	q.Set("digest", string(d))
	to.RawQuery = q.Encode()
	put(t, to.String(), "application/octet-stream", size, content)
}

// PushManifest pushes a manifest under a tag or by its digest.
func (r *Registry) PushManifest(t *testing.T, repository, reference, mediaType string, size int64, content io.Reader) {
	t.Helper()
	put(t, r.URL+"/v2/"+repository+"/manifests/"+reference, mediaType, size, content)
}

func put(t *testing.T, url, mediaType string, size int64, body io.Reader) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		out, _ := io.ReadAll(resp.Body)
		t.Fatalf("push to %s: %s: %s", url, resp.Status, out)
	}
}
