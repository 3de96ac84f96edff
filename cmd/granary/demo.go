package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/cmd/granary/demo"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// demoCmd shows a cluster at work, with nothing but this program and Go.
type demoCmd struct {
	Keep   bool   `name:"keep" local:"" help:"Stay up afterwards, for runtimes to pull from, until interrupted."`
	Goroot string `name:"goroot" placeholder:"DIR" help:"Go installation to make the image from. Default: the one found on this machine."`
}

// demoHost is the registry's name: one that resolves nowhere (RFC 6761), so that
// all that is seen of it comes through the node.
const demoHost = "registry.test"

func (c *demoCmd) Run(e *env) error {
	dir, err := os.MkdirTemp("", "granary-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	img, err := c.image(e, dir)
	if err != nil {
		return err
	}
	registry, err := startRegistry(img)
	if err != nil {
		return err
	}
	defer registry.kill()
	nodes, stop, err := c.cluster(e, dir, registry.url)
	if err != nil {
		return err
	}
	defer stop()
	d := &demonstration{e: e, nodes: nodes, registry: registry, img: img}
	fmt.Fprintf(e.stdout, "registry  %s, known as %s\n", registry.url, demoHost)
	for i, n := range nodes {
		fmt.Fprintf(e.stdout, "node %d    %s\n", i+1, n.URLs()[0])
	}
	fmt.Fprintln(e.stdout)
	if err := d.show(); err != nil {
		return err
	}
	if !c.Keep {
		return nil
	}
	if err := registry.revive(); err != nil {
		return err
	}
	fmt.Fprint(e.stdout, runtimeHelp(nodes[0].URLs()[0], d.name()))
	<-e.ctx.Done()
	return nil
}

// demoNodes is how many nodes pull at once.
const demoNodes = 3

// cluster starts nodes that know each other, and returns what stops them.
func (c *demoCmd) cluster(e *env, dir, registry string) (nodes []*node.Node, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()), 0o600); err != nil {
		return nil, stop, err
	}
	var join []string
	for i := range demoNodes {
		n, err := node.New(c.config(i, dir, registry, secret, join), quietLogger(e.stderr))
		if err != nil {
			return nil, stop, err
		}
		stops = append(stops, runNode(n, e))
		nodes = append(nodes, n)
		join = []string{n.Status().Cluster.Gossip}
	}
	for _, n := range nodes {
		for len(n.Status().Cluster.Members) < demoNodes {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-e.ctx.Done():
				return nil, stop, e.ctx.Err()
			}
		}
	}
	return nodes, stop, nil
}

func (c *demoCmd) config(i int, dir, registry, secret string, join []string) node.Config {
	return node.Config{
		DataConfig: node.DataConfig{
			DataDir:         filepath.Join(dir, fmt.Sprint("node", i+1)),
			CacheSize:       4 << 30,
			Upstream:        map[string]string{demoHost: registry},
			DefaultUpstream: demoHost,
		},
		ListenConfig: node.ListenConfig{
			Listen:       []string{c.address(i, "127.0.0.1:5050")},
			Admin:        c.address(i, "127.0.0.1:5051"),
			DrainTimeout: 5 * time.Second,
		},
		ClusterConfig: node.ClusterConfig{
			P2PListen:         []string{"/ip4/127.0.0.1/tcp/0"},
			GossipListen:      "127.0.0.1:0",
			ClusterSecretFile: secret,
			Join:              join,
			Weight:            10,
		},
	}
}

// address is what a node listens on: a port that is known only if somebody is to
// use it.
func (c *demoCmd) address(i int, known string) string {
	if c.Keep && i == 0 {
		return known
	}
	return "127.0.0.1:0"
}

func (c *demoCmd) image(e *env, dir string) (*demo.Image, error) {
	goroot := c.Goroot
	if goroot == "" {
		out, err := exec.CommandContext(e.ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return nil, fmt.Errorf("no Go installation was found to make an image from; name one with --goroot: %w", err)
		}
		goroot = strings.TrimSpace(string(out))
	}
	fmt.Fprintf(e.stdout, "image     made from %s …\n", goroot)
	img, err := demo.Build(filepath.Join(dir, "image"), goroot)
	if err != nil {
		return nil, err
	}
	for _, l := range img.Layers {
		_, kind, _ := strings.Cut(l.MediaType, "layer.v1.")
		fmt.Fprintf(e.stdout, "  layer   %.19s…  %9s  %s\n", l.Digest, bytesText(l.Size), kind)
	}
	return img, nil
}

// demonstration is the pulls, each by all nodes at once, and the table of what came
// from where.
type demonstration struct {
	e        *env
	nodes    []*node.Node
	registry *demoRegistry
	img      *demo.Image
}

func (d *demonstration) name() string { return demoHost + "/golang:" + runtime.Version()[2:] }

func (d *demonstration) show() error {
	fmt.Fprintf(d.e.stdout, "%-30s %-7s %9s %11s  %9s %9s %9s %9s\n", "pull by all nodes at once", "", "bytes", "rate", "upstream", "peers", "memory", "disk")
	for _, step := range []struct {
		title string
		setup func()
	}{
		{"cold: nobody has anything", func() {}},
		{"warm: everybody has it all", func() {}},
		{"the registry has been killed", d.registry.kill},
	} {
		step.setup()
		if err := d.pullAtOnce(step.title); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	fmt.Fprintf(d.e.stdout, "\nthe registry sent %s for an image of %s that was pulled %d times\n\n",
		bytesText(d.registry.handler.Sent.Load()), bytesText(d.img.Size()), 3*len(d.nodes))
	return nil
}

// pullAtOnce pulls the image through each node at the same time.
func (d *demonstration) pullAtOnce(title string) error {
	lines := make([]string, len(d.nodes))
	var g errgroup.Group
	for i, n := range d.nodes {
		g.Go(func() (err error) {
			lines[i], err = d.pull(n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, line := range lines {
		fmt.Fprintf(d.e.stdout, "%-30s node %d  %s\n", title, i+1, line)
		title = ""
	}
	return nil
}

// pull pulls the image through a node, as a runtime would, verifies it, and says
// where it came from.
func (d *demonstration) pull(n *node.Node) (string, error) {
	want, err := ref.Parse(d.name(), demoHost)
	if err != nil {
		return "", err
	}
	r, err := upstream.New(upstream.Config{URL: n.URLs()[0], UserAgent: "granary-demo/" + node.Version})
	if err != nil {
		return "", err
	}
	before, begin := n.Status(), time.Now()
	p := &puller{want: want, from: r.Repository(want.Repository.String()), progress: newProgress(io.Discard)}
	if err := p.pull(d.e.ctx); err != nil {
		return "", err
	}
	if err := p.graph.Err(); err != nil {
		return "", err
	}
	took, size := time.Since(begin), p.result().Bytes
	after := n.Status()
	line := fmt.Sprintf("%9s %9s/s ", bytesText(size), bytesText(int64(float64(size)/took.Seconds())))
	for _, source := range []string{"upstream", "peer", "memory", "disk"} {
		text := "-"
		if n := after.Served[source] - before.Served[source]; n > 0 {
			text = bytesText(n)
		}
		line += fmt.Sprintf(" %9s", text)
	}
	return line, nil
}

// demoRegistry is the registry of a demonstration, which can be killed.
type demoRegistry struct {
	url     string
	handler *demo.Registry
	server  *http.Server
}

func startRegistry(img *demo.Image) (*demoRegistry, error) {
	r := &demoRegistry{handler: &demo.Registry{Image: img}}
	return r, r.listen("127.0.0.1:0")
}

func (r *demoRegistry) listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	r.url = "http://" + l.Addr().String()
	r.server = &http.Server{Handler: r.handler, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = r.server.Serve(l) }() // ends with kill
	return nil
}

func (r *demoRegistry) kill() { _ = r.server.Close() }

func (r *demoRegistry) revive() error { return r.listen(strings.TrimPrefix(r.url, "http://")) }

// runtimeHelp is what to tell container runtimes for them to pull through the
// node.
func runtimeHelp(url, image string) string {
	host := strings.TrimPrefix(url, "http://")
	return fmt.Sprintf(`The node stays up; stop it with Ctrl-C. To pull %[1]s through it:

containerd, in DIR/%[2]s/hosts.toml (or DIR/_default/hosts.toml for every registry):

  [host."%[3]s"]
    capabilities = ["pull", "resolve"]

  ctr image pull --hosts-dir DIR %[1]s

podman, in /etc/containers/registries.conf.d/granary.conf:

  [[registry]]
  prefix = "%[2]s"
  location = "%[2]s"
  [[registry.mirror]]
  location = "%[4]s/%[2]s"
  insecure = true

  podman run --rm %[1]s

`, image, demoHost, url, host)
}
