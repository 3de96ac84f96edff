package trips

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	"github.com/granary-oci/granary/simtest/programs"
)

// client copies tags of a repository from a node to a registry.
type client struct {
	name string
	copy func(t *testing.T, c *trip) error
}

var clients = []client{
	{name: "crane", copy: byCrane},
	{name: "skopeo", copy: bySkopeo},
	{name: "containers-image", copy: byContainersImage},
	{name: "regctl", copy: byRegctl},
	{name: "oras", copy: byOras},
}

// trip is a copy of an item from a node to a registry.
type trip struct {
	source, target string          // repositories, as clients call them
	tags           []string        // all of them
	inner          []digest.Digest // indexes within indexes
}

// each copies what there is piece by piece.
func (c *trip) each(t *testing.T, program string, args ...string) error {
	t.Helper()
	var names []string
	for _, d := range c.inner {
		names = append(names, "@"+string(d))
	}
	for _, tag := range c.tags {
		names = append(names, ":"+tag)
	}
	var failed []error
	for _, name := range names {
		if out, err := programs.TryRun(t, nil, program, append(args, c.source+name, c.target+name)...); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w\n%s", name, err, out))
		}
	}
	return errors.Join(failed...)
}

func byCrane(t *testing.T, c *trip) error {
	return said(programs.TryRun(t, nil, programs.Tool(t, "crane"), "copy", "--all-tags", c.source, c.target))
}

func said(out string, err error) error {
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func bySkopeo(t *testing.T, c *trip) error {
	return c.docker().each(t, programs.OfSystem(t, "skopeo"), "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")
}

// byContainersImage copies with the library that is skopeo, at a newer version than Debian's.
func byContainersImage(t *testing.T, c *trip) error {
	return c.docker().each(t, programs.Tool(t, "cimage"), "-all", "/dev/null")
}

// docker is the trip with names as skopeo has them.
func (c *trip) docker() *trip {
	like := *c
	like.source, like.target = "docker://"+c.source, "docker://"+c.target
	return &like
}

func byRegctl(t *testing.T, c *trip) error {
	return said(tryRegctl(t, hostOf(c.source)+" "+hostOf(c.target), "image", "copy", "--referrers", "--digest-tags", c.source+":v1", c.target+":v1"))
}

func hostOf(image string) string { host, _, _ := strings.Cut(image, "/"); return host }

// tryRegctl runs regctl, which has to be told of hosts without TLS.
func tryRegctl(t *testing.T, hosts string, args ...string) (string, error) {
	t.Helper()
	config := programs.Write(t, t.TempDir(), "config.json", "{}")
	for _, host := range strings.Fields(hosts) {
		args = append(args, "--host", "reg="+host+",tls=disabled")
	}
	return programs.TryRun(t, []string{"REGCTL_CONFIG=" + config}, programs.Tool(t, "regctl"), args...)
}

func (s *shelf) regctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := tryRegctl(t, s.Address, args...); err != nil {
		t.Fatalf("regctl %q: %v\n%s", args, err, out)
	}
}

func byOras(t *testing.T, c *trip) error {
	return orasCopy(t.Context(), orasRepository(t, c.source), "", orasRepository(t, c.target), c.tags)
}

// orasCopy copies as oras cp --recursive does: images and what refers to them, and to what is in
// them. prefix is what stands before the tags at the source.
func orasCopy(ctx context.Context, src oras.ReadOnlyGraphTarget, prefix string, dst oras.Target, tags []string) error {
	for _, tag := range tags {
		if isList(tag) {
			continue // which is not an image's, and is made anew
		}
		top, err := oras.ExtendedCopy(ctx, src, prefix+tag, dst, tag, oras.ExtendedCopyOptions{})
		if err == nil {
			err = copyReferrersWithin(ctx, src, dst, top)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", tag, err)
		}
	}
	return nil
}

// copyReferrersWithin copies what refers to the manifests of an index.
func copyReferrersWithin(ctx context.Context, src content.ReadOnlyGraphStorage, dst content.Storage, index ocispec.Descriptor) error {
	if index.MediaType != indexType {
		return nil
	}
	p, err := content.FetchAll(ctx, src, index)
	if err != nil {
		return err
	}
	var list ocispec.Index
	if err := json.Unmarshal(p, &list); err != nil {
		return err
	}
	for _, m := range list.Manifests {
		if err := oras.ExtendedCopyGraph(ctx, src, dst, m, oras.DefaultExtendedCopyGraphOptions); err != nil {
			return err
		}
		if err := copyReferrersWithin(ctx, src, dst, m); err != nil {
			return err
		}
	}
	return nil
}
