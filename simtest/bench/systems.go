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
	"os/exec"
	"path/filepath"
	"time"
)

// bench holds what all measurements share.
type bench struct {
	options
	dir       string // of everything that is written
	granary   string // the binary
	processes []*process
	registry  *process // docker-registry, the upstream of all
	number    int
}

const host = "registry.test" // the upstream's name at the node

func newBench(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{options: o}
	if b.dir, err = os.MkdirTemp("", "granary-bench-"); err != nil {
		return nil, err
	}
	b.granary = filepath.Join(b.dir, "granary")
	build := exec.CommandContext(ctx, "go", "build", "-o", b.granary, "github.com/granary-oci/granary/cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.close()
		return nil, fmt.Errorf("build: %w\n%s", err, out)
	}
	if b.registry, err = b.startRegistry(ctx, "docker-registry", ""); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) close() {
	for _, p := range b.processes {
		p.stop()
	}
	_ = os.RemoveAll(b.dir)
}

// folder makes a new folder.
func (b *bench) folder(name string) string {
	b.number++
	dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d", name, b.number))
	_ = os.MkdirAll(dir, 0o755)
	return dir
}

// startRegistry runs docker-registry or distribution, as a pull-through cache if
// remote is not empty.
func (b *bench) startRegistry(ctx context.Context, program, remote string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	dir := b.folder("registry")
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %s}\n", dir, address)
	if remote != "" {
		config += "proxy: {remoteurl: " + remote + "}\n"
	}
	file := filepath.Join(b.dir, fmt.Sprintf("registry-%d.yml", b.number))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	p, err := b.start(ctx, "http://"+address+"/v2/", program, "serve", file)
	if err != nil {
		return nil, err
	}
	p.url = "http://" + address
	return p, nil
}

// startGranary runs a node before the registry.
func (b *bench) startGranary(ctx context.Context) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p, err := b.start(ctx, "http://"+address+"/v2/", b.granary, "serve", "--data-dir", b.folder("node"), "--cache-size", "20GiB",
		"--listen", address, "--admin", "", "--upstream", host+"="+b.registry.url, "--default-upstream", host, "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	p.url = "http://" + address
	return p, nil
}

// startNginx serves a folder.
func (b *bench) startNginx(ctx context.Context, dir string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	work := b.folder("nginx")
	config := fmt.Sprintf(`daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr;
events { worker_connections 1024; }
http { sendfile on; tcp_nopush on; access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen %[2]s; root %[3]s; } }
`, work, address, dir)
	file := filepath.Join(work, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	_ = os.Chmod(b.dir, 0o755) // nginx's workers are another user
	p, err := b.start(ctx, "http://"+address+"/", "nginx", "-c", file, "-g", "user root;")
	if err != nil {
		return nil, err
	}
	p.url = "http://" + address
	return p, nil
}

// distribution returns the program of distribution v3, or "".
func distribution() string {
	path, err := exec.LookPath(filepath.Join(os.Getenv("GRANARY_TOOLS"), "registry"))
	if err != nil || os.Getenv("GRANARY_TOOLS") == "" {
		return ""
	}
	return path
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
