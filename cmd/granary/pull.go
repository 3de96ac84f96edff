package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// pullCmd pulls an image through a node. What it pulls stays in the node's
// store.
type pullCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`

	Ref      string `arg:"" name:"ref" help:"Image to pull, as in alpine:3 or ghcr.io/org/app@sha256:…"`
	Output   string `name:"output" short:"o" placeholder:"oci:DIR" help:"OCI image layout to write the image to."`
	Platform string `name:"platform" default:"${platform}" placeholder:"OS/ARCH[/VARIANT]" help:"Which image of an index to pull; 'all' for each of them."`
	JSON     bool   `name:"json" help:"Print the result as JSON."`
}

// pulled is the result of a pull.
type pulled struct {
	Ref       string  `json:"ref"`
	Digest    string  `json:"digest"` // of what the reference names
	Blobs     int     `json:"blobs"`
	Bytes     int64   `json:"bytes"` // of blobs, manifests not counted
	Seconds   float64 `json:"seconds"`
	MediaType string  `json:"mediaType"`
	Layout    string  `json:"layout,omitempty"`
}

// Limits of an image.
const (
	maxNesting = 8    // of indexes
	maxBlobs   = 4096 // of one pull
	parallel   = 4    // blobs at once
)

func (c *pullCmd) Run(e *env) error {
	want, err := ref.Parse(c.Ref, c.DefaultUpstream)
	if err != nil {
		return err
	}
	p := &puller{want: want, platform: c.Platform, progress: newProgress(e.stderr)}
	if c.Output != "" {
		dir, ok := strings.CutPrefix(c.Output, "oci:")
		if !ok || dir == "" {
			return fmt.Errorf("--output %s: want oci:DIR", c.Output)
		}
		if p.out, err = openLayout(dir); err != nil {
			return err
		}
	}
	url, done, err := registryFace(e, c.DataConfig, c.nodeFlag)
	if err != nil {
		return err
	}
	defer done()
	if p.from, err = repositoryAt(url, c.DataConfig, want, nodeTimeout); err != nil {
		return err
	}
	begin := time.Now()
	desc, err := p.pull(e.ctx)
	p.progress.finish()
	if err != nil {
		return fmt.Errorf("pull %s: %w", want, err)
	}
	result := pulled{
		Ref: want.String(), Digest: string(desc.Digest), MediaType: desc.MediaType, Blobs: len(p.blobs), Bytes: p.size(),
		Seconds: time.Since(begin).Seconds(), Layout: c.Output,
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(result)
	}
	_, err = fmt.Fprintf(e.stdout, "%s@%s: %d blobs, %s in %.1fs\n", result.Ref, result.Digest, result.Blobs, bytesText(result.Bytes), result.Seconds)
	return err
}

// nodeTimeout is how long a node may take to answer: it may have to read all of a layer
// first.
const nodeTimeout = time.Hour

// repositoryAt returns a repository as the user of the command reads it through the
// node whose registry face is at url. answer is how long that may take to answer; 0 is
// 30 s.
func repositoryAt(url string, cfg node.DataConfig, want ref.Reference, answer time.Duration) (*upstream.Repository, error) {
	r, err := upstream.New(upstream.Config{
		URL: url, AnswerTimeout: answer, UserAgent: "granary/" + node.Version, InsecureSkipVerify: isLoopback(url),
		// The node relays the registry's challenge; whoever pulls answers it.
		Credentials: node.UserCredentials(cfg.DockerConfig, want.Host),
	})
	if err != nil {
		return nil, err
	}
	return r.Repository(want.Repository.String()), nil
}

// registryFace returns the URL of a registry face to pull through: that of the node
// that holds the data directory or answers at --node, else of a node that lives
// in this process until done is called.
func registryFace(e *env, cfg node.DataConfig, f nodeFlag) (url string, done func(), err error) {
	s, err := f.status(e.ctx)
	if err == nil && len(s.Listen) > 0 {
		return reachable(s.Listen[0]), func() {}, nil
	}
	n, err := node.New(node.Config{
		DataConfig:   cfg,
		ListenConfig: node.ListenConfig{Listen: []string{"127.0.0.1:0"}, DrainTimeout: time.Second},
	}, quietLogger(e.stderr))
	var locked *chunkstore.LockedError
	if errors.As(err, &locked) {
		if _, admin, ok := strings.Cut(locked.Holder, "admin "); ok {
			s, err := nodeFlag{Node: admin}.status(e.ctx)
			if err == nil && len(s.Listen) > 0 {
				return reachable(s.Listen[0]), func() {}, nil
			}
		}
	}
	if err != nil {
		return "", nil, err
	}
	return n.URLs()[0], runNode(n, e), nil
}

// runNode runs a node until the function it returns is called.
func runNode(n *node.Node, e *env) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return n.Run(ctx) })
	return func() {
		cancel()
		if err := g.Wait(); err != nil {
			e.log.Error("node", "error", err)
		}
	}
}

// reachable turns the address that a node listens on into one to connect to.
func reachable(url string) string {
	scheme, address, _ := strings.Cut(url, "://")
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return scheme + "://" + net.JoinHostPort("127.0.0.1", port)
	}
	return url
}

// isLoopback reports whether a certificate could prove nothing more: the node is
// this machine's own.
func isLoopback(url string) bool {
	_, address, _ := strings.Cut(url, "://")
	host, _, _ := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// puller reads one image, and writes it to a layout if it has one.
type puller struct {
	want     ref.Reference
	platform string
	from     *upstream.Repository
	out      *layout // nil for none
	progress *progress

	blobs []ocispec.Descriptor // to be read, without manifests
	seen  map[string]bool
}

func (p *puller) size() (n int64) {
	for _, b := range p.blobs {
		n += b.Size
	}
	return n
}

func (p *puller) pull(ctx context.Context) (ocispec.Descriptor, error) {
	name := p.want.Tag
	if p.want.Digest != "" {
		name = string(p.want.Digest)
	}
	p.seen = make(map[string]bool)
	desc, err := p.manifest(ctx, name, 0)
	if err != nil {
		return desc, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, b := range p.blobs {
		g.Go(func() error { return p.blob(gctx, b) })
	}
	if err := g.Wait(); err != nil {
		return desc, err
	}
	if p.out != nil {
		err = p.out.tag(desc, p.want.String())
	}
	return desc, err
}

// manifest reads a manifest and those below it, and notes the blobs they name.
func (p *puller) manifest(ctx context.Context, name string, depth int) (ocispec.Descriptor, error) {
	if depth > maxNesting {
		return ocispec.Descriptor{}, fmt.Errorf("indexes are nested more than %d deep", maxNesting)
	}
	raw, err := p.from.Manifest(ctx, name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, body := raw.Descriptor, raw.Bytes
	var m struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return desc, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	below, err := choosePlatform(m.Manifests, p.platform)
	if err != nil {
		return desc, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	for _, d := range below {
		if _, err := p.manifest(ctx, string(d.Digest), depth+1); err != nil {
			return desc, err
		}
	}
	if m.Config != nil {
		m.Layers = append([]ocispec.Descriptor{*m.Config}, m.Layers...)
	}
	for _, b := range m.Layers {
		if err := p.note(b); err != nil {
			return desc, err
		}
	}
	if p.out != nil && !p.out.has(desc) {
		err = p.out.add(desc, bytes.NewReader(body))
	}
	return desc, err
}

func (p *puller) note(b ocispec.Descriptor) error {
	if err := b.Digest.Validate(); err != nil || b.Size < 0 {
		return fmt.Errorf("descriptor %q of %d bytes: %w", string(b.Digest), b.Size, err)
	}
	if p.seen[string(b.Digest)] {
		return nil
	}
	p.seen[string(b.Digest)] = true
	p.blobs = append(p.blobs, b)
	if len(p.blobs) > maxBlobs {
		return fmt.Errorf("more than %d blobs", maxBlobs)
	}
	return nil
}

// choosePlatform returns the manifests of an index that are for a platform: the
// first that matches, as the image specification says, or all.
func choosePlatform(all []ocispec.Descriptor, platform string) ([]ocispec.Descriptor, error) {
	if platform == "all" || len(all) == 0 {
		return all, nil
	}
	part := strings.Split(platform, "/")
	if len(part) < 2 || len(part) > 3 {
		return nil, fmt.Errorf("platform %q: want OS/ARCH, OS/ARCH/VARIANT or all", platform)
	}
	var there []string
	for _, d := range all {
		if d.Platform == nil {
			continue
		}
		if d.Platform.OS == part[0] && d.Platform.Architecture == part[1] && (len(part) == 2 || d.Platform.Variant == part[2]) {
			return []ocispec.Descriptor{d}, nil
		}
		there = append(there, strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/"))
	}
	return nil, fmt.Errorf("no image for %s; there are %s", platform, strings.Join(there, ", "))
}

// blob reads a blob to its verified end.
func (p *puller) blob(ctx context.Context, desc ocispec.Descriptor) error {
	bar := p.progress.add(desc)
	if p.out != nil && p.out.has(desc) {
		bar.done("already there")
		return nil
	}
	resp, err := p.from.Get(ctx, "blobs/"+string(desc.Digest), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("blob %s: %s", desc.Digest, resp.Status)
	}
	body := bar.reader(resp.Body)
	if p.out != nil {
		err = p.out.add(desc, body)
	} else {
		err = copyVerified(io.Discard, body, desc)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	bar.done("done")
	return nil
}

func defaultPlatform() string { return "linux/" + runtime.GOARCH }
