package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/netns"
)

// registry is Debian's docker-registry on a machine of its own.
type registry struct {
	*netns.Process
	space *space
	work  string
	read  int64 // bytes of the access log that have been counted
}

const (
	upstreamName = "registry.test" // of the registry, at the nodes
	tag          = "v1"
)

// startRegistry starts the registry on what earlier runs have pushed.
func startRegistry(ctx context.Context, s *space, work, log string) (*registry, error) {
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: false}}\n"+
		"storage: {filesystem: {rootdirectory: %s/registry}, cache: {blobdescriptor: inmemory}}\nhttp: {addr: 0.0.0.0:5000}\n", work)
	file := log + ".yml"
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	p, err := netns.Start(log, s.Space, "docker-registry", "serve", file)
	if err != nil {
		return nil, err
	}
	r := &registry{Process: p, space: s, work: work}
	return r, eventually(ctx, 20*time.Second, "the registry answers", func() bool { return p.Alive() && answers(ctx, s, r.local("/v2/")) })
}

func (r *registry) local(path string) string { return "http://127.0.0.1:5000" + path }

// url is where other machines reach the registry.
func (r *registry) url() string { return "http://" + r.space.Address + ":5000" }

// ensure makes and pushes an image unless an earlier run has.
func (r *registry) ensure(ctx context.Context, what recipe) (*image, error) {
	note := filepath.Join(r.work, "images", fmt.Sprintf("%s-%d-%d.json", what.name, what.size, what.seed))
	if img := new(image); loadJSON(note, img) == nil && r.holds(ctx, img) {
		return img, nil
	}
	if err := os.MkdirAll(filepath.Dir(note), 0o755); err != nil {
		return nil, err
	}
	img, err := what.build(filepath.Dir(note), func(d ocispec.Descriptor, file string) error { return r.pushBlob(ctx, what.name, d, file) })
	if err != nil {
		return nil, err
	}
	if err := r.send(ctx, r.local("/v2/"+img.Name+"/manifests/"+tag), ocispec.MediaTypeImageManifest, bytes.NewReader(img.Manifest), int64(len(img.Manifest))); err != nil {
		return nil, err
	}
	p, err := json.Marshal(img)
	return img, errors.Join(err, os.WriteFile(note, p, 0o644))
}

func loadJSON(file string, v any) error {
	p, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(p, v)
}

func (r *registry) holds(ctx context.Context, img *image) bool {
	paths := []string{"/manifests/" + string(img.Digest), "/manifests/" + tag}
	for _, b := range img.Blobs {
		paths = append(paths, "/blobs/"+string(b.Digest))
	}
	for _, path := range paths {
		resp, err := request(ctx, r.space, http.MethodHead, r.local("/v2/"+img.Name+path), "", nil, 0)
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false
		}
		if path == "/manifests/"+tag && resp.Header.Get("Docker-Content-Digest") != string(img.Digest) {
			return false
		}
	}
	return true
}

// pushBlob uploads in one piece (distribution-spec, "Pushing a blob monolithically").
func (r *registry) pushBlob(ctx context.Context, name string, d ocispec.Descriptor, file string) error {
	resp, err := request(ctx, r.space, http.MethodPost, r.local("/v2/"+name+"/blobs/uploads/"), "", nil, 0)
	if err != nil {
		return err
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		return fmt.Errorf("push: %s: %w", resp.Status, err)
	}
	q := to.Query()
	q.Set("digest", string(d.Digest))
	to.RawQuery = q.Encode()
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.send(ctx, to.String(), "application/octet-stream", f, d.Size)
}

func (r *registry) send(ctx context.Context, url, mediaType string, body io.Reader, size int64) error {
	resp, err := request(ctx, r.space, http.MethodPut, url, mediaType, body, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		out, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("push: %s: %s", resp.Status, out)
	}
	return nil
}

func request(ctx context.Context, s *space, method, url, mediaType string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", mediaType)
	}
	return s.client.Do(req)
}

func answers(ctx context.Context, s *space, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := request(ctx, s, http.MethodGet, url, "", nil, 0)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// requests returns how many requests the registry has answered since it was
// asked last. Its access log has a line for each (Apache's combined format).
func (r *registry) requests() int {
	f, err := os.Open(r.Log)
	if err != nil {
		return 0
	}
	defer f.Close()
	_, _ = f.Seek(r.read, io.SeekStart)
	p, _ := io.ReadAll(f)
	p = p[:bytes.LastIndexByte(p, '\n')+1]
	r.read += int64(len(p))
	n := 0
	for line := range strings.Lines(string(p)) {
		if strings.Contains(line, `] "`) && strings.Contains(line, " /v2/") && strings.Contains(line, " HTTP/1.") {
			n++
		}
	}
	return n
}

func eventually(ctx context.Context, limit time.Duration, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !ok() {
		if err := netns.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("not within %v: %s", limit, what)
		}
	}
	return nil
}
