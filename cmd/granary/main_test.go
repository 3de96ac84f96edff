package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/cmd/granary/node"
)

func granary(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, &out, &errs)
	return status, out.String(), errs.String()
}

// column returns the first cells of the rows of the table under a heading of
// ARCHITECTURE.md that look like match.
func column(t *testing.T, heading string, match *regexp.Regexp) []string {
	t.Helper()
	p, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(p), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("ARCHITECTURE.md has no section %s", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var names []string
	for line := range strings.Lines(section) {
		if m := match.FindStringSubmatch(line); m != nil {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return names
}

func TestEveryFlagIsInTheArchitecture(t *testing.T) {
	parser, err := kong.New(&cli{}, kong.Vars{"data_dir": "", "platform": ""})
	if err != nil {
		t.Fatal(err)
	}
	var flags []string
	err = kong.Visit(parser.Model, func(n kong.Visitable, next kong.Next) error {
		if f, ok := n.(*kong.Flag); ok && f.Name != "help" {
			flags = append(flags, f.Name)
		}
		return next(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(flags)
	flags = slices.Compact(flags)
	if want := column(t, "Settings", regexp.MustCompile("^\\| `--([a-z0-9-]+)`")); !slices.Equal(flags, want) {
		t.Errorf("flags are    %v\nthe table has %v", flags, want)
	}
}

func testNode(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	n, _ := startNode(t, cfg)
	return n
}

// startNode runs a node until it is stopped, or the test ends.
func startNode(t *testing.T, cfg node.Config) (n *node.Node, stop func()) {
	t.Helper()
	if cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	cfg.Listen, cfg.Admin, cfg.DrainTimeout = []string{"127.0.0.1:0"}, "127.0.0.1:0", 5*time.Second
	cfg.DefaultUpstream = "registry.test"
	n, err := node.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return n, stop
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, p := fetch(t, url)
	return resp.StatusCode, string(p)
}

func TestEveryMetricIsInTheArchitecture(t *testing.T) {
	n := testNode(t, node.Config{
		DataConfig:    node.DataConfig{Upstream: map[string]string{"registry.test": "http://127.0.0.1:1"}, Parent: []string{"http://127.0.0.1:1"}},
		ClusterConfig: node.ClusterConfig{P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", InsecureCluster: true},
	})
	if status, _ := get(t, n.URLs()[0]+"/v2/app/manifests/v1"); status != http.StatusBadGateway {
		t.Errorf("a dead upstream: %d", status)
	}
	_, text := get(t, n.AdminURL()+"/metrics")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (granary_\S+)`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	if want := column(t, "Metrics", regexp.MustCompile("^\\| `(granary_[a-z_]+)`")); !slices.Equal(names, want) {
		t.Errorf("metrics are  %v\nthe table has %v", names, want)
	}
}

func TestSettingsComeFromFlagEnvironmentFileAndDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "granary.yaml")
	text := "cache-size: 7GiB\nlisten: [127.0.0.1:1, '[::1]:1']\nadmin: 127.0.0.1:2\ndata-dir: /file\nupstream:\n  docker.io: https://mirror.example\n  ghcr.io: http://127.0.0.1:9\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GRANARY_ADMIN", "127.0.0.1:3")
	t.Setenv("GRANARY_DATA_DIR", "/environment")
	status, out, errs := granary(t, "config", "--config", file, "--data-dir", "/flag", "--json")
	if status != 0 {
		t.Fatal(errs)
	}
	var got []setting
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	for _, want := range []setting{
		{"data-dir", "/flag", "flag"},
		{"admin", "127.0.0.1:3", "environment GRANARY_ADMIN"},
		{"cache-size", "7GiB", file + ":1"},
		{"listen", "127.0.0.1:1,[::1]:1", file + ":2"},
		{"upstream", "docker.io=https://mirror.example;ghcr.io=http://127.0.0.1:9", file + ":6"},
		{"default-upstream", "docker.io", "default"},
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%+v is not in %+v", want, got)
		}
	}
}

func TestWrongSettingsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"cache-sise: 7GiB\n":                                     `:1: there is no setting "cache-sise"`,
		"admin: x\n\ncache-size: many\n":                         `:3: cache-size: `,
		"drain-timeout: soon\n":                                  ":1: drain-timeout: ",
		"verify-reads: never\n":                                  ":1: verify-reads: must be one of first,always",
		"admin: a\nadmin: b\n":                                   "admin",
		"upstream: [a, b]\n":                                     ":1: upstream: does not take a value of this kind",
		"- a\n":                                                  ":1: want settings",
		"a: [\n":                                                 "granary.yaml",
		"\nupstream:\n  docker.io: 'ftp://x'\n":                  ":3: upstream: docker.io: ",
		"upstream:\n  a.test: [http://a, 'x']\n":                 ":2: upstream: a.test: ",
		"upstream-ca-file:\n  docker.io: /none\n":                ":2: upstream-ca-file: docker.io: ",
		"tag-policy:\n- a=pin\n- b=never\n":                      `:2: tag-policy: tag policy "never"`,
		"node-credentials:\n  ghcr.io: yes\n":                    `:2: node-credentials: ghcr.io: "yes" is neither off nor share`,
		"max-stale: -1s\n":                                       ":1: max-stale: it is negative",
		"max-requests: -1\n":                                     ":1: max-requests: it is negative",
		"max-requests: some\n":                                   ":1: max-requests: ",
		"docker-config: /none\nnode-credentials: {'*': share}\n": ":1: docker-config: ",
		"snapshotter-listen: /run/snapshotter.sock\n":            `:1: snapshotter-listen: "/run/snapshotter.sock" is not unix://`,
		"tls-cert-file: /none\ntls-key-file: /none\n":            ":1: tls-cert-file: ",
	} {
		file := filepath.Join(t.TempDir(), "granary.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		status, _, errs := granary(t, "serve", "--config", file, "--listen", "127.0.0.1:0", "--data-dir", t.TempDir())
		if status == 0 || !strings.Contains(errs, want) || strings.Contains(errs, "goroutine") {
			t.Errorf("%q: status %d, %s; want %s", text, status, errs, want)
		}
	}
	if status, _, errs := granary(t, "serve", "--tag-policy", "x", "--data-dir", t.TempDir()); status != 2 || !strings.Contains(errs, "--tag-policy: ") {
		t.Errorf("wrong flag: %d, %s", status, errs)
	}
	t.Setenv("GRANARY_TAG_POLICY", "x")
	if status, _, errs := granary(t, "serve", "--data-dir", t.TempDir()); status != 2 || !strings.Contains(errs, "environment GRANARY_TAG_POLICY: tag-policy: ") {
		t.Errorf("wrong environment: %d, %s", status, errs)
	}
	t.Setenv("GRANARY_TAG_POLICY", "*=pin")
	for _, args := range [][]string{{"serve", "--no-such-flag"}, {"nonsense"}, {"pull"}, {"serve", "--config", "/none/such"}} {
		if status, _, errs := granary(t, args...); status != 2 || errs == "" {
			t.Errorf("%v: status %d, %s", args, status, errs)
		}
	}
}

func TestCommandsWithoutANodeSayWhatToDo(t *testing.T) {
	if status, _, errs := granary(t, "status", "--node", "http://127.0.0.1:1"); status != 1 || !strings.Contains(errs, "granary serve") {
		t.Errorf("status: %d, %s", status, errs)
	}
	if status, out, errs := granary(t, "fsck", "--data-dir", t.TempDir()); status != 0 || !strings.HasPrefix(out, "0 blobs") {
		t.Errorf("fsck: %d, %s%s", status, out, errs)
	}
	if status, out, _ := granary(t, "version"); status != 0 || !strings.HasPrefix(out, "granary ") {
		t.Errorf("version: %d, %s", status, out)
	}
	if status, out, _ := granary(t, "--help"); status != 0 || !strings.Contains(out, "serve") {
		t.Errorf("--help: %d, %s", status, out)
	}
}

func TestStatusSaysWhatBlobsShareOnDisk(t *testing.T) {
	answers := func(u chunkstore.Usage) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(node.Status{Store: u})
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	if status, out, errs := granary(t, "status", "--node", answers(chunkstore.Usage{Bytes: 3 << 30, Shared: 5 << 30})); status != 0 || !strings.Contains(out, "5.0 GiB more") {
		t.Errorf("status: %d, %s%s", status, out, errs)
	}
	if status, out, errs := granary(t, "status", "--node", answers(chunkstore.Usage{Bytes: 3 << 30})); status != 0 || strings.Contains(out, "more") {
		t.Errorf("status: %d, %s%s", status, out, errs)
	}
}

// TestStatusSaysWhatWasSpared of a link and of images, whatever these are called.
func TestStatusSaysWhatWasSpared(t *testing.T) {
	carried := node.Carried{In: 3 << 20, Asked: 100 << 20, Saved: 97 << 20}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(node.Status{
			Links: []node.Link{{Link: "parent hub", Today: carried, Month: carried}, {Link: "child thin", Month: node.Carried{Out: 1 << 20}}},
			Images: []node.ImageAccount{
				{Repository: "ghcr.io/app", Tag: "v1", Asked: 9 << 20, Moved: 2 << 20, Saved: 7 << 20, Parents: 2 << 20, Members: 4 << 20},
				{Repository: "ghcr.io/\x1b[31m", Registry: 5 << 20},
			},
		})
	}))
	defer s.Close()
	status, out, errs := granary(t, "status", "--node", s.URL)
	for _, want := range []string{
		"asked for 0 B this hour, 100 MiB today, 100 MiB in 31 days, saved 0 B this hour, 97 MiB today, 97 MiB in 31 days\n",
		"9.0 MiB asked for, 2.0 MiB moved, 7.0 MiB saved; 2.0 MiB came from parents, 0 B from registries, 4.0 MiB from members\n",
	} {
		if status != 0 || strings.Count(out, want) != 1 || strings.Contains(out, "\x1b") {
			t.Errorf("status: %d, %q%s", status, out, errs)
		}
	}
}

func TestStatusAndFsckThroughANode(t *testing.T) {
	dir := t.TempDir()
	n := testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: dir, CacheSize: 1 << 30}})
	status, out, errs := granary(t, "status", "--node", n.AdminURL(), "--json")
	var s node.Status
	if err := json.Unmarshal([]byte(out), &s); status != 0 || err != nil || s.DataDir != dir || s.Store.Budget != 1<<30 {
		t.Errorf("status: %d, %s%s", status, out, errs)
	}
	if status, out, _ := granary(t, "status", "--node", n.AdminURL()); status != 0 || !strings.Contains(out, "1.0 GiB") {
		t.Errorf("status: %d, %s", status, out)
	}
	// The lock says where the node is, whatever --node says.
	if status, out, errs := granary(t, "fsck", "--data-dir", dir, "--node", "http://127.0.0.1:1"); status != 0 || !strings.Contains(out, "0 wrong") {
		t.Errorf("fsck: %d, %s%s", status, out, errs)
	}
	for _, path := range []string{"/healthz", "/readyz", "/debug/pprof/cmdline"} {
		if status, _ := get(t, n.AdminURL()+path); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	if _, err := node.New(node.Config{DataConfig: node.DataConfig{DataDir: dir}}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "in use by pid") {
		t.Errorf("a second node on one directory: %v", err)
	}
}

func TestANodeWithoutADirectoryServes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: filepath.Join(file, "below")}})
	if status, _ := get(t, n.URLs()[0]+"/v2/"); status != 200 {
		t.Errorf("/v2/: %d", status)
	}
	if s := n.Status(); s.Degraded == "" {
		t.Error("the status does not say that nothing is kept")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]node.Size{"1": 1, "5MiB": 5 << 20, "50GiB": 50 << 30, "1.5KiB": 1536, "2 GB": 2e9} {
		var s node.Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "5XB", "9999999999TiB"} {
		if err := new(node.Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for a size", text)
		}
	}
	if got := fmt.Sprint(node.Size(5<<20), node.Size(1000)); got != "5MiB 1000" {
		t.Error(got)
	}
}
