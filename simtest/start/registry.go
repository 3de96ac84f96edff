package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/netns"
)

// registry is the registry of the CNCF's distribution, on a machine of its own.
type registry struct {
	*netns.Process
	space  *netns.Space
	work   string       // where images are kept
	client *http.Client // on its machine
}

// registryHost is what the registry is called at nodes; it resolves nowhere.
const registryHost = "registry.test"

// startRegistry starts the registry with what earlier runs have put into it.
func startRegistry(ctx context.Context, s *netns.Space, work, log string) (*registry, error) {
	config := log + ".yml"
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, cache: {blobdescriptor: inmemory}}\nhttp: {addr: 0.0.0.0:5000}\n", filepath.Join(work, "registry"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	program, err := netns.Tool("registry", "docker-registry")
	if err != nil {
		return nil, err
	}
	p, err := netns.Start(log, s, program, "serve", config)
	if err != nil {
		return nil, err
	}
	r := &registry{p, s, work, s.Client()}
	return r, p.Ready(ctx, func() bool { return netns.Answers(ctx, r.client, r.local("/v2/")) })
}

func (r *registry) local(path string) string { return "http://127.0.0.1:5000" + path }

// address is where the nodes reach the registry.
func (r *registry) address() string { return r.space.Address + ":5000" }

// holds reports whether the registry has an image.
func (r *registry) holds(ctx context.Context, img *image) bool {
	resp, err := r.do(ctx, http.MethodHead, r.local("/v2/"+img.Format+"/manifests/"+tag), "", nil, 0)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK && resp.Header.Get("Docker-Content-Digest") == string(img.Manifest.Digest)
}

// pushBlob uploads in one piece (distribution-spec, "POST then PUT").
func (r *registry) pushBlob(ctx context.Context, name string, d ocispec.Descriptor, from io.Reader) error {
	resp, err := r.do(ctx, http.MethodPost, r.local("/v2/"+name+"/blobs/uploads/"), "", nil, 0)
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
	return r.put(ctx, to.String(), "application/octet-stream", from, d.Size)
}

func (r *registry) pushManifest(ctx context.Context, name, mediaType string, p []byte) error {
	return r.put(ctx, r.local("/v2/"+name+"/manifests/"+tag), mediaType, bytes.NewReader(p), int64(len(p)))
}

func (r *registry) put(ctx context.Context, url, mediaType string, body io.Reader, size int64) error {
	resp, err := r.do(ctx, http.MethodPut, url, mediaType, body, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		out, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("push: %s: %s", resp.Status, out)
	}
	return nil
}

func (r *registry) do(ctx context.Context, method, url, mediaType string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", mediaType)
	}
	return r.client.Do(req)
}
