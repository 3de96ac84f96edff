package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
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
	Seconds   float64 `json:"seconds,omitempty"`
	MediaType string  `json:"mediaType"`
	Layout    string  `json:"layout,omitempty"`
	Missing   []lack  `json:"missing,omitempty"`

	Spared      int   `json:"spared,omitempty"` // blobs left out, for another layout has them
	SparedBytes int64 `json:"sparedBytes,omitempty"`

	Chosen *candidate `json:"chosen,omitempty"` // by --compat
}

// name names what was pulled by its digest, and as it was asked for.
func (r pulled) name() string {
	if strings.Contains(r.Ref, "@") {
		return r.Ref
	}
	return r.Ref + "@" + r.Digest
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

func (c *pullCmd) Run(e *env) (err error) {
	p, err := c.puller(e)
	if err != nil {
		return err
	}
	defer func() { p.out.close(err == nil) }()
	url, done, err := registryFace(e, c.DataConfig, c.nodeFlag)
	if err != nil {
		return err
	}
	defer done()
	if p.from, err = repositoryAt(url, c.DataConfig, p.want, nodeTimeout); err != nil {
		return err
	}
	begin := time.Now()
	err = p.pull(e.ctx)
	p.progress.finish()
	if err != nil {
		return fmt.Errorf("pull %s: %w", p.want, err)
	}
	r := p.result()
	r.Layout, r.Seconds, r.Chosen = c.Output, time.Since(begin).Seconds(), p.chosen
	return c.print(e, p, r)
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
		p.warms = true
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
	incomplete := report(e.stderr, p.graph, p.want.String())
	if c.JSON {
		if err := json.NewEncoder(e.stdout).Encode(r); err != nil {
			return err
		}
	}
	if incomplete != nil {
		return fmt.Errorf("pull %w", incomplete)
	}
	if c.JSON {
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, "%s: %d blobs, %s in %.1fs\n", r.name(), r.Blobs, bytesText(r.Bytes), r.Seconds)
	if r.Chosen != nil && err == nil {
		_, err = fmt.Fprintln(e.stdout, "taken: "+choiceText(r.Chosen))
	}
	return err
}

// nodeTimeout is how long a node may take to answer: it may have to read all of a layer
// first.
const nodeTimeout = time.Hour

// repositoryAt returns a repository as the user of the command reads it through the
// node whose registry face is at url. answer is how long that may take to answer, and how long it may
// send nothing then: behind a thin line a chunk takes long to come. 0 is 30 s.
func repositoryAt(url string, cfg node.DataConfig, want ref.Reference, answer time.Duration) (*upstream.Repository, error) {
	r, err := upstream.New(upstream.Config{
		URL: url, AnswerTimeout: answer, StallTimeout: answer, UserAgent: "granary/" + node.Version, InsecureSkipVerify: isLoopback(url),
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
	s, done, err := anyNode(e, cfg, f)
	if err != nil {
		return "", nil, err
	}
	return reachable(s.Listen[0]), done, nil
}

// anyNode returns the status of the node that registryFace speaks of, with the admin listener at
// which it answers from here.
func anyNode(e *env, cfg node.DataConfig, f nodeFlag) (s node.Status, done func(), err error) {
	s, err = f.status(e.ctx)
	if err == nil && len(s.Listen) > 0 {
		s.Admin = f.Node
		return s, func() {}, nil
	}
	n, err := node.New(node.Config{
		DataConfig:   cfg,
		ListenConfig: node.ListenConfig{Listen: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0", DrainTimeout: time.Second},
	}, quietLogger(e.stderr))
	var locked *chunkstore.LockedError
	if errors.As(err, &locked) {
		if _, admin, ok := strings.Cut(locked.Holder, "admin "); ok {
			f.Node = admin
			s, err := f.status(e.ctx)
			if err == nil && len(s.Listen) > 0 {
				s.Admin = reachable(admin)
				return s, func() {}, nil
			}
		}
	}
	if err != nil {
		return s, nil, err
	}
	return n.Status(), runNode(n, e), nil
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

func defaultPlatform() string { return "linux/" + runtime.GOARCH }
