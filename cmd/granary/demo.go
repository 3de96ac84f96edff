package main

import (
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

	"github.com/granary-oci/granary/cmd/granary/demo"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// demoCmd shows a node at work, with nothing but this program and Go.
type demoCmd struct {
	Keep   bool   `name:"keep" help:"Stay up afterwards, for runtimes to pull from, until interrupted."`
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
	n, err := node.New(node.Config{
		DataConfig: node.DataConfig{
			DataDir:         filepath.Join(dir, "node"),
			CacheSize:       4 << 30,
			Upstream:        map[string]string{demoHost: registry.url},
			DefaultUpstream: demoHost,
		},
		ListenConfig: node.ListenConfig{
			Listen:       []string{c.address("127.0.0.1:5050")},
			Admin:        c.address("127.0.0.1:5051"),
			DrainTimeout: 5 * time.Second,
		},
	}, quietLogger(e.stderr))
	if err != nil {
		return err
	}
	defer runNode(n, e)()
	d := &demonstration{e: e, node: n, registry: registry, img: img}
	fmt.Fprintf(e.stdout, "node      %s, registry %s behind it as %s\n\n", n.URLs()[0], registry.url, demoHost)
	if err := d.show(); err != nil {
		return err
	}
	if !c.Keep {
		return nil
	}
	if err := registry.revive(); err != nil {
		return err
	}
	fmt.Fprint(e.stdout, runtimeHelp(n.URLs()[0], d.name()))
	<-e.ctx.Done()
	return nil
}

// address is what the node listens on: a port that is known only if somebody is
// to use it.
func (c *demoCmd) address(known string) string {
	if c.Keep {
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

// demonstration is the three pulls and the table of what came from where.
type demonstration struct {
	e        *env
	node     *node.Node
	registry *demoRegistry
	img      *demo.Image
}

func (d *demonstration) name() string { return demoHost + "/golang:" + runtime.Version()[2:] }

func (d *demonstration) show() error {
	fmt.Fprintf(d.e.stdout, "%-34s %9s %11s  %s\n", "pull", "bytes", "rate", "came from")
	for _, step := range []struct {
		title string
		setup func()
	}{
		{"cold: the node has nothing", func() {}},
		{"warm: the node has it all", func() {}},
		{"the registry has been killed", d.registry.kill},
	} {
		step.setup()
		if err := d.pull(step.title); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	fmt.Fprintf(d.e.stdout, "\nthe registry sent %s for an image of %s that was pulled three times\n\n",
		bytesText(d.registry.handler.Sent.Load()), bytesText(d.img.Size()))
	return nil
}

// pull pulls the image through the node, as a runtime would, and verifies it.
func (d *demonstration) pull(title string) error {
	want, err := ref.Parse(d.name(), demoHost)
	if err != nil {
		return err
	}
	r, err := upstream.New(upstream.Config{URL: d.node.URLs()[0], UserAgent: "granary-demo/" + node.Version})
	if err != nil {
		return err
	}
	before, begin := d.node.Status(), time.Now()
	p := &puller{want: want, platform: "all", from: r.Repository(want.Repository.String()), progress: newProgress(io.Discard)}
	if _, err := p.pull(d.e.ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	after := d.node.Status()
	var from []string
	for _, source := range []string{"upstream", "memory", "disk"} {
		if n := after.Served[source] - before.Served[source]; n > 0 {
			from = append(from, source+" "+bytesText(n))
		}
	}
	fmt.Fprintf(d.e.stdout, "%-34s %9s %9s/s  %s\n", title, bytesText(p.size()),
		bytesText(int64(float64(p.size())/took.Seconds())), strings.Join(from, ", "))
	return nil
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
