package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// registry is Debian's docker-registry, behind a gate.
type registry struct {
	*process
	url  string
	gate *gate
}

func (l *lab) startRegistry(ctx context.Context) (*registry, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(l.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %s}\n", filepath.Join(l.dir, "registry"), address)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	r := &registry{url: "http://" + address}
	if r.process, err = l.start(ctx, r.url+"/v2/", "docker-registry", "serve", config); err != nil {
		return nil, err
	}
	r.gate, err = newGate(r.url)
	return r, err
}

// push puts an image into a repository, by the tag v1.
func (l *lab) push(ctx context.Context, repository string, img *image) error {
	for _, d := range append(img.layers, img.config) {
		if err := l.pushBlob(ctx, repository, d.Digest); err != nil {
			return fmt.Errorf("push %s: %w", repository, err)
		}
	}
	return l.pushManifest(ctx, repository, "v1", img.manifest.MediaType, img.manifest.Digest)
}

func (l *lab) pushManifest(ctx context.Context, repository, tag, mediaType string, d digest.Digest) error {
	p, err := os.ReadFile(l.path(d))
	if err != nil {
		return err
	}
	return send(ctx, http.MethodPut, l.registry.url+"/v2/"+repository+"/manifests/"+tag, mediaType, bytes.NewReader(p), int64(len(p)), nil)
}

// pushBlob puts a blob into a repository (distribution-spec, "POST then PUT").
func (l *lab) pushBlob(ctx context.Context, repository string, d digest.Digest) error {
	var to *url.URL
	err := send(ctx, http.MethodPost, l.registry.url+"/v2/"+repository+"/blobs/uploads/", "", nil, 0, func(r *http.Response) (err error) {
		to, err = r.Location()
		return err
	})
	if err != nil {
		return err
	}
	q := to.Query()
	q.Set("digest", string(d))
	to.RawQuery = q.Encode()
	f, err := os.Open(l.path(d))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return send(ctx, http.MethodPut, to.String(), "application/octet-stream", f, info.Size(), nil)
}

func send(ctx context.Context, method, url, mediaType string, body io.Reader, size int64, then func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, said)
	}
	if then == nil {
		return nil
	}
	return then(resp)
}
