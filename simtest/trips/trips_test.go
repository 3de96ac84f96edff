package trips

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/programs"
)

var granary string // the program

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "granary-trips-")
	if err == nil {
		granary, err = filepath.Join(dir, "granary"), programs.Build(dir, "cmd/granary")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "trips:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// host is what a kind of registry is called at a node. It resolves nowhere.
func (k kind) host() string { return k.name + ".test" }

// source is a registry with all items that it keeps, each in a repository of its own.
type source struct {
	kind
	registry *programs.Registry
	items    map[string]*inventory // what they are, by name
}

func fill(t *testing.T, k kind) *source {
	t.Helper()
	src := &source{kind: k, registry: k.start(t), items: make(map[string]*inventory)}
	for _, i := range items {
		if !k.keeps(i) {
			continue
		}
		s := &shelf{Registry: src.registry, name: "app/" + i.name}
		i.push(t, s)
		src.items[i.name] = s.at().walk(t)
		if len(src.items[i.name].objects) == 0 {
			t.Errorf("%s, %s is empty", k.name, i.name)
		}
	}
	return src
}

// images are the names of all items at a node.
func (src *source) images() (all []string) {
	for name := range src.items {
		all = append(all, src.host()+"/app/"+name+":v1")
	}
	return all
}

// export exports everything.
func (src *source) export(t *testing.T, target string) {
	t.Helper()
	args := append([]string{"export", "--referrers", "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", src.host() + "=" + src.registry.URL}, src.images()...)
	programs.Run(t, nil, granary, append(args, target)...)
}

// node is a member of a cluster whose registries cannot be reached.
type node struct {
	*programs.Process
	address, admin, gossip string
}

// cluster starts an empty cluster of so many members.
func cluster(t *testing.T, n int, flags ...string) (nodes []*node) {
	t.Helper()
	secret := programs.Write(t, t.TempDir(), "secret", strings.Repeat("s3cret", 8))
	for range n {
		m := &node{address: programs.FreeAddress(t), admin: programs.FreeAddress(t), gossip: programs.FreeAddress(t)}
		_, p2p, _ := strings.Cut(programs.FreeAddress(t), ":")
		args := []string{
			"serve", "--data-dir", filepath.Join(t.TempDir(), "node"), "--listen", m.address, "--admin", m.admin,
			"--cluster-secret-file", secret, "--p2p-listen", "/ip4/127.0.0.1/tcp/" + p2p, "--gossip-listen", m.gossip,
		}
		if len(nodes) > 0 {
			args = append(args, "--join", nodes[0].gossip)
		}
		args = append(args, flags...)
		m.Process = programs.Start(t, granary, args...)
		programs.Eventually(t, "the node is ready", func() bool { return programs.Answers("http://" + m.admin + "/readyz") })
		nodes = append(nodes, m)
	}
	for _, m := range nodes {
		programs.Eventually(t, "the members know each other", func() bool {
			out, _ := programs.TryRun(t, nil, granary, "peers", "--node", "http://"+m.admin)
			return strings.Count(out, " up ")+strings.Count(out, " self ") >= n
		})
	}
	return nodes
}

func (n *node) repository(src *source, item string) repository {
	return repository("http://" + n.address + "/v2/" + src.host() + "/app/" + item)
}

func TestThereAndBack(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			src := fill(t, k)
			target := "oci:" + filepath.Join(t.TempDir(), "layout")
			if k.lists {
				target = "oci-archive:" + filepath.Join(t.TempDir(), "images.tar")
			}
			src.export(t, target)
			_ = src.registry.End(syscall.SIGKILL)
			nodes := cluster(t, 2)
			programs.Run(t, nil, granary, "import", target, "--node", "http://"+nodes[0].admin)
			for item, all := range src.items {
				for _, n := range nodes {
					n.repository(src, item).same(t, all)
				}
			}
			to := targets(t, k, src)
			for _, c := range clients {
				t.Run(c.name, func(t *testing.T) {
					for item, all := range src.items {
						t.Run(item, func(t *testing.T) {
							c.carry(t, src, nodes[1], to[item], item, all)
						})
					}
				})
			}
		})
	}
}

// targets starts the registries that items are copied to: distribution, or one like the source
// for what distribution does not keep.
func targets(t *testing.T, k kind, src *source) map[string]*programs.Registry {
	t.Helper()
	ordinary := kinds[0].start(t)
	to := make(map[string]*programs.Registry)
	for _, i := range items {
		switch _, there := src.items[i.name]; {
		case there && i.only != "":
			to[i.name] = k.start(t)
		case there:
			to[i.name] = ordinary
		}
	}
	return to
}

// carry copies an item from a node to a registry, and compares what has arrived.
func (c client) carry(t *testing.T, src *source, from *node, to *programs.Registry, item string, all *inventory) {
	there, back := from.repository(src, item), c.name+"/"+item
	root := all.tags["v1"]
	known := limitOf(c.name, item)
	err := c.copy(t, &trip{
		source: strings.Replace(strings.TrimPrefix(string(there), "http://"), "/v2/", "/", 1), target: to.Address + "/" + back,
		tags: there.tags(t), inner: all.inner(root),
	})
	switch {
	case known.says == "" && err != nil:
		t.Error(err)
	case known.says != "" && (err == nil || !strings.Contains(err.Error(), known.says)):
		t.Errorf("it does not say %q: %v", known.says, err)
	}
	target := repository(to.URL + "/v2/" + back)
	loses := func(o *object) bool { return known.loses != nil && known.loses(o, root) }
	target.compare(t, all, func(o *object) bool {
		lost := loses(o)
		if lost && known.instead != nil {
			if p, _ := target.get(t, known.instead(o)); !bytes.Equal(p, o.bytes) {
				t.Errorf("%s is not at %s", o.path, known.instead(o))
			}
		}
		return o.nested || lost
	})
	if !known.unlisted {
		target.compareReferrers(t, all)
	}
	target.compareTags(t, all, func(tag string) bool {
		return known.untagged || isList(tag) || loses(all.objects[all.tags[tag]])
	})
}

// inner returns the indexes that are in others.
func (i *inventory) inner(root digest.Digest) (inner []digest.Digest) {
	for _, o := range i.objects {
		if o.digest != root && strings.HasPrefix(o.path, "manifests/") && strings.Contains(string(o.bytes), `"manifests"`) {
			inner = append(inner, o.digest)
		}
	}
	return inner
}
