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
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// pullCmd pulls an image through a node. What it pulls stays in the node's
// store.
type pullCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`

	Ref       string `arg:"" name:"ref" help:"Image to pull, as in alpine:3 or ghcr.io/org/app@sha256:…"`
	Output    string `name:"output" short:"o" placeholder:"oci:DIR" help:"OCI image layout to write the image to."`
	Platform  string `name:"platform" default:"${platform}" placeholder:"OS/ARCH[/VARIANT]" help:"Which image of an index to pull; 'all' for each of them."`
	Referrers bool   `name:"referrers" help:"Pull what refers to the image too: signatures, attestations, SBOMs."`
	Compat    string `name:"compat" default:"off" enum:"off,prefer,require" placeholder:"off|prefer|require" help:"Take the image of an index that says that it suits this machine best: if there is one, or fail without one."`
	JSON      bool   `name:"json" help:"Print the result as JSON."`
}

// pulled is the result of a pull.
type pulled struct {
	Ref       string  `json:"ref"`
	Digest    string  `json:"digest"` // of what the reference names
	Manifests int     `json:"manifests"`
	Blobs     int     `json:"blobs"`
	Bytes     int64   `json:"bytes"` // of blobs, manifests not counted
	Seconds   float64 `json:"seconds"`
	MediaType string  `json:"mediaType"`
	Layout    string  `json:"layout,omitempty"`
	Missing   []lack  `json:"missing,omitempty"`

	Chosen *candidate `json:"chosen,omitempty"` // by --compat
}

// lack is something that was not to be had.
type lack struct {
	Digest    string   `json:"digest"`
	MediaType string   `json:"mediaType,omitempty"`
	Size      int64    `json:"size"`
	For       []string `json:"for"` // who refers to it, and where
	Required  bool     `json:"required"`
	Reason    string   `json:"reason"`
}

// parallel is how many blobs, and how many manifests, are read at once.
const parallel = 4

func (c *pullCmd) Run(e *env) error {
	p, err := c.puller(e)
	if err != nil {
		return err
	}
	url, done, err := registryFace(e, c.DataConfig, c.nodeFlag)
	if err != nil {
		return err
	}
	defer done()
	if p.from, err = repositoryAt(url, c.DataConfig, p.want, nodeTimeout); err != nil {
		return err
	}
	begin := time.Now()
	desc, err := p.pull(e.ctx)
	p.progress.finish()
	if err != nil {
		return fmt.Errorf("pull %s: %w", p.want, err)
	}
	return c.print(e, p, pulled{
		Ref: p.want.String(), Digest: string(desc.Digest), MediaType: desc.MediaType, Layout: c.Output, Seconds: time.Since(begin).Seconds(),
		Manifests: len(p.graph.Manifests()), Blobs: len(p.graph.Blobs()), Bytes: p.size(), Missing: p.lacks(), Chosen: p.chosen,
	})
}

// puller returns what pulls as the flags say, once it is told from where.
func (c *pullCmd) puller(e *env) (p *puller, err error) {
	p = &puller{referrers: c.Referrers, progress: newProgress(e.stderr)}
	if p.want, err = ref.Parse(c.Ref, c.DefaultUpstream); err != nil {
		return nil, err
	}
	if p.platform, err = parsePlatform(c.Platform); err != nil {
		return nil, err
	}
	if c.Compat != compatOff {
		p.compat = c.Compat
	}
	if p.compat != "" && p.platform == nil {
		return nil, fmt.Errorf("--compat=%s takes one platform, not all", p.compat)
	}
	if c.Output == "" {
		return p, nil
	}
	dir, ok := strings.CutPrefix(c.Output, "oci:")
	if !ok || dir == "" {
		return nil, fmt.Errorf("--output %s: want oci:DIR", c.Output)
	}
	p.out, err = openLayout(dir)
	return p, err
}

// print prints the result of a pull. The error is that something is missing which is required.
func (c *pullCmd) print(e *env, p *puller, r pulled) error {
	required := 0
	for _, problem := range p.graph.Problems {
		word := "not there, and not required"
		if problem.Required {
			word, required = "missing", required+1
		}
		fmt.Fprintf(e.stderr, "%s: %v\n", word, problem)
	}
	if c.JSON {
		if err := json.NewEncoder(e.stdout).Encode(r); err != nil {
			return err
		}
	}
	if required > 0 {
		return fmt.Errorf("pull %s: incomplete, %d of what it refers to is missing", p.want, required)
	}
	if c.JSON {
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, "%s@%s: %d blobs, %s in %.1fs\n", r.Ref, r.Digest, r.Blobs, bytesText(r.Bytes), r.Seconds)
	if r.Chosen != nil && err == nil {
		_, err = fmt.Fprintln(e.stdout, "taken: "+choiceText(r.Chosen))
	}
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

// puller reads all of an image, and writes it to a layout if it has one.
type puller struct {
	want      ref.Reference
	platform  *ocispec.Platform // nil for all
	referrers bool
	compat    string // "" for off
	from      *upstream.Repository
	out       *layout // nil for none
	progress  *progress

	graph  *graph.Graph // once it is known
	chosen *candidate   // by compat, nil for none
}

// size is that of all blobs, in bytes.
func (p *puller) size() (n int64) {
	for _, b := range p.graph.Blobs() {
		n += b.Size
	}
	return n
}

func (p *puller) lacks() (all []lack) {
	for _, problem := range p.graph.Problems {
		n := problem.Node
		l := lack{Digest: string(n.Digest), MediaType: n.MediaType, Size: n.Size, Required: problem.Required, Reason: problem.Err.Error()}
		for _, r := range n.Refs {
			l.For = append(l.For, r.String())
		}
		all = append(all, l)
	}
	return all
}

// pull returns what the reference names. What is not there is in the graph's problems. If
// any of that is required the layout gets what is there of blobs, and no manifest: it has
// none without what that names.
func (p *puller) pull(ctx context.Context) (ocispec.Descriptor, error) {
	m, err := p.from.Manifest(ctx, manifestName(p.want))
	if err != nil {
		return m.Descriptor, err
	}
	root := m.Descriptor
	root.Data = m.Bytes
	opts := graph.Options{Platform: p.platform, Parallel: parallel}
	if p.referrers {
		opts.Referrers = registrySource{p.from}
	}
	if p.compat != "" {
		if opts.Prefer, err = p.prefer(ctx, m); err != nil {
			return m.Descriptor, err
		}
	}
	if p.graph, err = graph.Walk(ctx, registrySource{p.from}, []ocispec.Descriptor{root}, opts); err != nil {
		return m.Descriptor, err
	}
	if err := p.blobs(ctx); err != nil {
		return m.Descriptor, err
	}
	if p.out != nil && p.graph.Err() == nil {
		err = p.write(m.Descriptor)
	}
	return m.Descriptor, err
}

// blobs reads all blobs, and notes which of them are not there.
func (p *puller) blobs(ctx context.Context) error {
	var mu sync.Mutex
	lost := make(map[*graph.Node]error)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, b := range p.graph.Blobs() {
		g.Go(func() error {
			err := p.blob(gctx, b)
			if errors.Is(err, graph.ErrNotFound) {
				mu.Lock()
				defer mu.Unlock()
				lost[b], err = err, nil
			}
			return err
		})
	}
	err := g.Wait()
	p.graph.Lose(lost)
	return err
}

// write writes the manifests, in whose order each comes after what it names, and lists in
// the layout's index the image and what refers to it.
func (p *puller) write(root ocispec.Descriptor) error {
	entries := []ocispec.Descriptor{named(root, p.want.String())}
	for _, n := range p.graph.Manifests() {
		if !p.out.has(n.Descriptor) {
			if err := p.out.add(n.Descriptor, bytes.NewReader(n.Content)); err != nil {
				return err
			}
		}
		for _, r := range n.Refs {
			switch r.Role {
			case graph.Tagged:
				entries = append(entries, named(n.Descriptor, ref.Reference{Repository: p.want.Repository, Tag: r.Path}.String()))
			case graph.Referrer:
				entries = append(entries, named(n.Descriptor, ""))
			}
		}
	}
	return p.out.list(entries)
}

// parsePlatform reads a platform; nil is for all.
func parsePlatform(s string) (*ocispec.Platform, error) {
	if s == "all" {
		return nil, nil
	}
	p, err := graph.ParsePlatform(s)
	if err != nil {
		err = fmt.Errorf("%w, or all", err)
	}
	return p, err
}

// blob reads a blob to its verified end.
func (p *puller) blob(ctx context.Context, n *graph.Node) error {
	bar := p.progress.add(n.Descriptor)
	if p.out != nil && p.out.has(n.Descriptor) {
		bar.done("already there")
		return nil
	}
	if p.out != nil && n.Content != nil {
		bar.done("embedded")
		return p.out.add(n.Descriptor, bytes.NewReader(n.Content))
	}
	resp, err := p.from.Get(ctx, "blobs/"+string(n.Digest), nil, nil)
	if err = missing(err); errors.Is(err, graph.ErrNotFound) && n.Content != nil {
		bar.done("embedded") // the registry need not have it, and the node neither
		return nil
	}
	if err != nil {
		bar.drop()
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("blob %s: %s", n.Digest, resp.Status)
	}
	body := bar.reader(resp.Body)
	if p.out != nil {
		err = p.out.add(n.Descriptor, body)
	} else {
		err = copyVerified(io.Discard, body, n.Descriptor)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", n.Digest, err)
	}
	bar.done("done")
	return nil
}

func defaultPlatform() string { return "linux/" + runtime.GOARCH }
