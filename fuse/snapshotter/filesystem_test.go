package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/fuse/mounter"
)

var (
	manifest = digest.FromString("manifest")
	bottom   = digest.FromString("bottom")
	top      = digest.FromString("top")
)

func labels() map[string]string {
	return map[string]string{
		snapshotters.TargetRefLabel:            "docker.io/library/app:v1",
		snapshotters.TargetManifestDigestLabel: manifest.String(),
		snapshotters.TargetLayerDigestLabel:    bottom.String(),
		snapshotters.TargetImageLayersLabel:    bottom.String() + "," + top.String(),
	}
}

// mounts is a mounter that has nothing to mount.
type mounts struct {
	asked []mounter.Layer
	at    map[string]bool
	err   error
}

func (m *mounts) Ready(context.Context) error { return nil }

func (m *mounts) Mount(_ context.Context, dir string, l mounter.Layer) error {
	m.asked = append(m.asked, l)
	if m.err == nil {
		m.at[dir] = true
	}
	return m.err
}

func (m *mounts) Mounted(_ context.Context, dir string) error {
	if !m.at[dir] {
		return mounter.ErrNotMounted
	}
	return nil
}

func (m *mounts) Unmount(_ context.Context, dir string) error {
	delete(m.at, dir)
	return nil
}

func TestLabelsSayWhatIsMounted(t *testing.T) {
	m := &mounts{at: make(map[string]bool)}
	f := &fileSystem{m, slog.New(slog.DiscardHandler)}
	if err := f.Mount(t.Context(), "/1/fs", labels()); err != nil {
		t.Fatal(err)
	}
	got := m.asked[0]
	if got.Image != "docker.io/library/app:v1" || got.Manifest != manifest || got.Digest != bottom || !slices.Equal(got.Coming, []digest.Digest{top}) {
		t.Errorf("%+v", got)
	}
}

func TestLabelsThatDoNotSay(t *testing.T) {
	for _, change := range []func(map[string]string){
		func(l map[string]string) { clear(l) },
		func(l map[string]string) { delete(l, snapshotters.TargetRefLabel) },
		func(l map[string]string) { delete(l, snapshotters.TargetManifestDigestLabel) },
		func(l map[string]string) { l[snapshotters.TargetLayerDigestLabel] = "sha256:../../x" },
		func(l map[string]string) { l[snapshotters.TargetManifestDigestLabel] = "v1" },
	} {
		m := &mounts{at: make(map[string]bool)}
		f := &fileSystem{m, slog.New(slog.DiscardHandler)}
		l := labels()
		change(l)
		if err := f.Mount(t.Context(), "/1/fs", l); err == nil || len(m.asked) > 0 {
			t.Errorf("%v: %v, asked for %v", slices.Collect(maps.Keys(l)), err, m.asked)
		}
	}
	l := labels()
	l[snapshotters.TargetImageLayersLabel] = strings.Repeat("nonsense,", 1000) + strings.Repeat(top.String()+",", 1000)
	if got, err := layerOf(l); err != nil || len(got.Coming) > maxComing {
		t.Errorf("%d layers are to come, %v", len(got.Coming), err)
	}
}

// TestCheck: what is mounted is not asked for again, and what is not is mounted.
func TestCheck(t *testing.T) {
	m := &mounts{at: make(map[string]bool)}
	f := &fileSystem{m, slog.New(slog.DiscardHandler)}
	for range 3 {
		if err := f.Check(t.Context(), "/1/fs", labels()); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.asked) != 1 {
		t.Errorf("mounted %d times", len(m.asked))
	}
	m.err = errors.New("there is no registry")
	if err := f.Check(t.Context(), "/2/fs", labels()); !errors.Is(err, m.err) {
		t.Error(err)
	}
	if err := f.Check(t.Context(), "/1/fs", labels()); err != nil {
		t.Errorf("what is mounted: %v", err)
	}
}
