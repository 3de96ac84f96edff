package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
)

// Systems that are compared.
const (
	granary        = "granary"
	direct         = "direct" // the registry itself
	nginx          = "nginx"
	dockerRegistry = "docker-registry"
	distribution   = "distribution v3"
)

// lab is what the measurements of a node beside other programs share: a registry, which is the upstream of all.
type lab struct {
	scale     *bench
	into      *figures.Set
	dir       string // of everything that is written
	granary   string // the binary
	processes []*process
	registry  *process
	number    int
}

const host = "registry.test" // the upstream's name at the node

// inLab is a group that is measured in a lab of its own.
func inLab(measure func(*lab, context.Context) error) func(context.Context, *bench, *figures.Set) error {
	return func(ctx context.Context, b *bench, into *figures.Set) (err error) {
		l := &lab{scale: b, into: into}
		defer l.close()
		if l.granary, err = b.granary(); err != nil {
			return err
		}
		if l.dir, err = os.MkdirTemp(b.dir, "lab-"); err != nil {
			return err
		}
		program, err := netns.Tool("docker-registry", "registry")
		if err != nil {
			return err
		}
		if l.registry, err = l.startRegistry(ctx, program, ""); err != nil {
			return err
		}
		return measure(l, ctx)
	}
}

func (l *lab) close() {
	for _, p := range l.processes {
		p.stop()
	}
	_ = os.RemoveAll(l.dir)
}

// system is a program under measurement.
type system struct {
	name string
	*process
	url string // of what is fetched from it
}

// systemsBefore starts a node, and the registries that are installed as pull-through caches, before a registry. Of those that are not
// the measurements say so. url is what follows the address of each.
func (l *lab) systemsBefore(ctx context.Context, remote, url string, ms ...figures.Measurement) ([]system, error) {
	node, err := l.startGranary(ctx, remote)
	if err != nil {
		return nil, err
	}
	all := []system{{granary, node, node.url + url}}
	for _, cache := range []struct{ name, program string }{{dockerRegistry, "docker-registry"}, {distribution, "registry"}} {
		program, err := netns.Tool(cache.program)
		if err != nil {
			l.miss(cache.name, err, ms...)
			continue
		}
		p, err := l.startRegistry(ctx, program, remote)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cache.name, err)
		}
		all = append(all, system{cache.name, p, p.url + url})
	}
	return all, nil
}

func (l *lab) miss(system string, why error, ms ...figures.Measurement) {
	for _, m := range ms {
		l.into.Miss(m, system, why.Error())
	}
}

// compare has the node seen beside all others.
func (l *lab) compare(systems []system, ms ...figures.Measurement) {
	var others []string
	for _, s := range systems {
		if s.name != granary {
			others = append(others, s.name)
		}
	}
	for _, m := range ms {
		l.into.Compare(m, granary, others...)
	}
}

// folder makes a new folder.
func (l *lab) folder(name string) string {
	l.number++
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%d", name, l.number))
	_ = os.MkdirAll(dir, 0o755)
	return dir
}

// startRegistry runs docker-registry or distribution, as a pull-through cache if
// remote is not empty.
func (l *lab) startRegistry(ctx context.Context, program, remote string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	file, err := l.registryConfig(address, remote)
	if err != nil {
		return nil, err
	}
	return l.startAt(ctx, address, "/v2/", program, "serve", file)
}

func (l *lab) registryConfig(address, remote string) (file string, err error) {
	dir := l.folder("registry")
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %s}\n", dir, address)
	if remote != "" {
		config += "proxy: {remoteurl: " + remote + "}\n"
	}
	file = dir + ".yml"
	return file, os.WriteFile(file, []byte(config), 0o600)
}

// startGranary runs a node before a registry.
func (l *lab) startGranary(ctx context.Context, remote string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return l.startAt(ctx, address, "/v2/", l.granary, "serve", "--data-dir", l.folder("node"), "--cache-size", "20GiB",
		"--listen", address, "--admin", "", "--upstream", host+"="+remote, "--default-upstream", host, "--log-level", "warn")
}

// startNginx serves a folder.
func (l *lab) startNginx(ctx context.Context, dir string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	work := l.folder("nginx")
	config := fmt.Sprintf(`daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr;
events { worker_connections 1024; }
http { sendfile on; tcp_nopush on; access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen %[2]s; root %[3]s; } }
`, work, address, dir)
	file := filepath.Join(work, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	program, err := netns.Tool("nginx")
	if err != nil {
		return nil, err
	}
	args := []string{program, "-c", file}
	if os.Geteuid() == 0 {
		args = append(args, "-g", "user root;") // its workers would be another user, who may not read the folder
	}
	return l.startAt(ctx, address, "/", args...)
}

// randomBlob returns n bytes that nothing compresses, and their digest.
func randomBlob(n int64, seed uint64) ([]byte, string) {
	p := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p, fmt.Sprintf("sha256:%x", sha256.Sum256(p))
}

// push uploads a blob in one piece (distribution-spec, "Pushing a blob
// monolithically").
func push(ctx context.Context, registry, name, digest string, p []byte) error {
	resp, err := request(ctx, http.MethodPost, registry+"/v2/"+name+"/blobs/uploads/", nil)
	if err != nil {
		return err
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		return fmt.Errorf("push: %s: %w", resp.Status, err)
	}
	q := to.Query()
	q.Set("digest", digest)
	to.RawQuery = q.Encode()
	resp, err = request(ctx, http.MethodPut, to.String(), p)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("push: %s", resp.Status)
	}
	return nil
}

func request(ctx context.Context, method, url string, body []byte) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	return http.DefaultClient.Do(req)
}

// client is the client of the measurements: it reads into one buffer and throws
// away, so that what is measured is the server.
var client = &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 128, ReadBufferSize: 64 << 10}}

// fetch reads a URL to its end and returns how many bytes there were.
func fetch(ctx context.Context, url, rang string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if rang != "" {
		req.Header.Set("Range", rang)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return 0, fmt.Errorf("%s: %s", url, resp.Status)
	}
	buf := make([]byte, 512<<10)
	var n int64
	for {
		k, err := resp.Body.Read(buf)
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// timed fetches a URL of want bytes and returns the rate in MB/s.
func timed(ctx context.Context, url string, want int64) (float64, error) {
	begin := time.Now()
	n, err := fetch(ctx, url, "")
	if err == nil && n != want {
		err = fmt.Errorf("%s: %d bytes, want %d", url, n, want)
	}
	return float64(n) / 1e6 / time.Since(begin).Seconds(), err
}
