package simtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/granary-oci/granary/"

// allowed is the architecture: for each package, the packages of ours that it
// may import. Imports go down only, and siblings do not know each other.
var allowed = map[string][]string{
	"chunkstore/chunk":                {},
	"chunkstore":                      {"chunkstore/chunk"},
	"chunkstore/lend":                 {},
	"chunkstore/blocks":               {"chunkstore/chunk"},
	"proxy/ref":                       {},
	"proxy/content":                   {},
	"proxy/catalog":                   {},
	"proxy/graph":                     {"proxy/ref"},
	"proxy/compat":                    {},
	"proxy/trace":                     {},
	"proxy/upstream":                  {"chunkstore/chunk", "proxy/trace"},
	"proxy/layout":                    {"chunkstore/chunk", "proxy/flight", "proxy/ref", "proxy/upstream"},
	"proxy/upstreamtest":              {"chunkstore/chunk", "proxy", "proxy/ref", "proxy/upstream"},
	"proxy/access":                    {},
	"proxy/delta":                     {"chunkstore/chunk"},
	"proxy/flight":                    {},
	"toc":                             {},
	"toc/estargz":                     {"toc"},
	"toc/zstdchunked":                 {"toc"},
	"toc/cdc":                         {"toc", "toc/tarhead"},
	"toc/recipe":                      {"toc"},
	"toc/tarball":                     {"toc", "toc/tarhead"},
	"toc/tarhead":                     {},
	"toc/gzip":                        {"toc"},
	"toc/erofs":                       {"toc"},
	"toc/squashfs":                    {"toc"},
	"toc/treetest":                    {"toc"},
	"toc/zstdchunked/zstdchunkedtest": {},
	"proxy/profile":                   {},
	"proxy/gateway":                   {"chunkstore/blocks", "proxy/access", "proxy/ref"},
	"proxy/parent":                    {"chunkstore/blocks", "chunkstore/chunk", "proxy/ref", "proxy/upstream"},
	"proxy/leads":                     {"toc"},
	"proxy/rebuild":                   {"chunkstore/chunk", "proxy/upstream", "toc", "toc/cdc", "toc/gzip", "toc/recipe", "toc/tarball"},
	"proxy/lazy":                      {"chunkstore/chunk", "proxy/flight", "proxy/ref", "toc", "toc/cdc", "toc/erofs", "toc/estargz", "toc/gzip", "toc/squashfs", "toc/tarball", "toc/zstdchunked"},
	"proxy":                           {"chunkstore", "chunkstore/chunk", "proxy/access", "proxy/catalog", "proxy/content", "proxy/delta", "proxy/flight", "proxy/graph", "proxy/lazy", "proxy/leads", "proxy/profile", "proxy/rebuild", "proxy/ref", "proxy/trace", "proxy/upstream", "toc", "toc/cdc"},
	"fuse":                            {"toc"},
	"fuse/mounter":                    {"fuse"},
	"fuse/snapshotter":                {"fuse/mounter"},
	"cmd/granary/demo":                {},
	"cmd/granary/configure":           {},
	"cmd/granary/doctor":              {"cmd/granary/configure", "cmd/granary/node", "proxy/parent"},
	"tracker":                         {},
	"tracker/gossip":                  {"tracker"},
	"tracker/dht":                     {"tracker"},
	"tracker/trackertest":             {"tracker"},
	"p2p/wire":                        {"chunkstore/chunk", "tracker"},
	"p2p/decide":                      {"chunkstore/chunk", "p2p/wire", "tracker"},
	"p2p":                             {"chunkstore/chunk", "p2p/decide", "p2p/wire", "proxy/trace", "tracker"},
	"p2p/p2ptest":                     {"p2p", "tracker"},
	"p2p/libp2p":                      {"p2p", "tracker"},
	"p2p/site":                        {"p2p/libp2p"},
	"p2p/bitswap":                     {"chunkstore/blocks"},
	"cmd/granary/node/dashboard":      {},
	"cmd/granary/node":                {"chunkstore", "chunkstore/chunk", "chunkstore/lend", "cmd/granary/node/dashboard", "fuse/mounter", "fuse/snapshotter", "p2p", "p2p/bitswap", "p2p/libp2p", "p2p/site", "p2p/wire", "proxy", "proxy/access", "proxy/catalog", "proxy/gateway", "proxy/graph", "proxy/layout", "proxy/lazy", "proxy/parent", "proxy/rebuild", "proxy/ref", "proxy/trace", "proxy/upstream", "toc", "tracker", "tracker/dht", "tracker/gossip"},
	"cmd/granary":                     {"chunkstore", "chunkstore/chunk", "chunkstore/lend", "cmd/granary/configure", "cmd/granary/demo", "cmd/granary/doctor", "cmd/granary/node", "fuse", "fuse/mounter", "fuse/snapshotter", "p2p", "proxy", "proxy/catalog", "proxy/compat", "proxy/flight", "proxy/graph", "proxy/layout", "proxy/ref", "proxy/upstream", "toc"},
	"chunkstore/storetest":            {"chunkstore/chunk"},
	"simtest":                         {},
	"simtest/powercut":                {},
}

// vocabulary is what chunkstore/chunk may import besides the standard library.
var vocabulary = []string{"github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec/specs-go/v1"}

type goPackage struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
	Standard   bool
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Doc,GoFiles,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsGoDownOnly(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if len(p.GoFiles) == 0 {
			continue // a package of tests alone
		}
		may, listed := allowed[name]
		if !listed && !strings.HasPrefix(name, "simtest/") {
			t.Errorf("package %s is not in the architecture", name)
			continue
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module); ok && listed && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s", name, ours)
			}
			outside := strings.Contains(strings.SplitN(i, "/", 2)[0], ".")
			if name == "chunkstore/chunk" && outside && !slices.Contains(vocabulary, i) {
				t.Errorf("%s imports %s", name, i)
			}
			if i == "testing" && !strings.HasPrefix(name, "simtest") && name != "chunkstore/storetest" && name != "proxy/upstreamtest" && name != "tracker/trackertest" {
				t.Errorf("%s imports testing", name)
			}
		}
	}
}

func TestEveryPackageHasADocComment(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("package %s has no doc comment", p.ImportPath)
		}
	}
}
