package netns

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Pull is a light client: it pulls as a runtime does, the manifest and then the blobs, three at a
// time, compares each digest and throws the bytes away. It repeats nothing: whatever a node lets
// its clients see is an error. repository is a URL, as http://127.0.0.1:5050/v2/app; want is what
// the tag has to stand for. It returns the bytes of the image.
func Pull(ctx context.Context, c *http.Client, repository, tag string, want digest.Digest) (int64, error) {
	p, err := getManifest(ctx, c, repository+"/manifests/"+tag)
	if err != nil {
		return 0, err
	}
	if got := digest.FromBytes(p); got != want {
		return 0, fmt.Errorf("manifest: digest %s, want %s", got, want)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(p, &m); err != nil {
		return 0, fmt.Errorf("manifest: %w", err)
	}
	n := int64(len(p))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		n += d.Size
		g.Go(func() error { return getBlob(ctx, c, repository+"/blobs/"+string(d.Digest), d) })
	}
	return n, g.Wait()
}

func getManifest(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	resp, err := get(ctx, c, url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 4<<20))
}

func getBlob(ctx context.Context, c *http.Client, url string, d ocispec.Descriptor) error {
	resp, err := get(ctx, c, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(h, struct{ io.Reader }{resp.Body}, make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("blob %s: after %d of %d bytes: %w", d.Digest, n, d.Size, err)
	}
	if got := digest.NewDigest(digest.SHA256, h); got != d.Digest || n != d.Size {
		return fmt.Errorf("blob %s: got %s, %d bytes of %d", d.Digest, got, n, d.Size)
	}
	return nil
}

func get(ctx context.Context, c *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		out, _ := io.ReadAll(io.LimitReader(resp.Body, 4000))
		return nil, fmt.Errorf("%s: %s: %s", url, resp.Status, out)
	}
	return resp, nil
}
