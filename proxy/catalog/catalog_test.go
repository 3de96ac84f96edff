package catalog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/catalog"
)

// each runs a test over both kinds of catalog.
func each(t *testing.T, test func(t *testing.T, c *catalog.Catalog)) {
	t.Run("memory", func(t *testing.T) { test(t, catalog.NewMemory()) })
	t.Run("file", func(t *testing.T) {
		c, err := catalog.Open(filepath.Join(t.TempDir(), "catalog.db"), func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		test(t, c)
	})
}

func TestTags(t *testing.T) {
	each(t, func(t *testing.T, c *catalog.Catalog) {
		want := catalog.Tag{Digest: digest.FromString("x"), MediaType: "m", Size: 1, Checked: time.Now().UTC().Round(time.Second)}
		for _, name := range []string{"v1", "v2", "v10"} {
			if err := c.SetTag("a.test/app", name, want); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.SetTag("a.test/app2", "v1", want); err != nil {
			t.Fatal(err)
		}
		if got, ok := c.Tag("a.test/app", "v1"); !ok || got != want {
			t.Errorf("%+v, %v", got, ok)
		}
		if n, err := c.ForgetTags("a.test/app", "v1"); n != 1 || err != nil {
			t.Errorf("one tag: %d, %v", n, err)
		}
		if _, ok := c.Tag("a.test/app", "v10"); !ok {
			t.Error("v10 was forgotten with v1")
		}
		if n, err := c.ForgetTags("a.test/app", ""); n != 2 || err != nil {
			t.Errorf("all tags: %d, %v", n, err)
		}
		if _, ok := c.Tag("a.test/app2", "v1"); !ok {
			t.Error("another repository's tag was forgotten")
		}
		if got := c.SomeTag(); got != "a.test/app2:v1" {
			t.Errorf("some tag: %q", got)
		}
		if n, err := c.ForgetTags("a.test/none", ""); n != 0 || err != nil {
			t.Errorf("no tags: %d, %v", n, err)
		}
	})
}

func TestWhatIsConfirmedStays(t *testing.T) {
	each(t, func(t *testing.T, c *catalog.Catalog) {
		d := digest.FromString("x")
		named := catalog.Member{MediaType: "layer", Size: 7}
		confirmed := catalog.Member{Size: 5, Confirmed: true}
		manifest := catalog.Member{MediaType: "index", Size: 5, Confirmed: true, Manifest: true}
		for _, step := range []struct{ add, want catalog.Member }{
			{named, named}, {confirmed, confirmed}, {named, confirmed}, {manifest, manifest}, {confirmed, manifest}, {named, manifest},
		} {
			if err := c.AddMembers("a.test/app", map[digest.Digest]catalog.Member{d: step.add}); err != nil {
				t.Fatal(err)
			}
			if got, ok := c.Member("a.test/app", d); !ok || got != step.want {
				t.Errorf("after %+v: %+v, %v; want %+v", step.add, got, ok, step.want)
			}
		}
		if err := c.AddMembers("b.test/app", map[digest.Digest]catalog.Member{d: named}); err != nil {
			t.Fatal(err)
		}
		if got := c.Homes(d); !slices.Equal(got, []string{"a.test/app"}) {
			t.Errorf("homes are %v: a name alone is none", got)
		}
		if c.Possesses("a.test", d) || c.SetPossesses("a.test", d) != nil || !c.Possesses("a.test", d) || c.Possesses("b.test", d) {
			t.Error("possession")
		}
	})
}

// TestWhatIsImportedStays so, whatever the upstream says of it later.
func TestWhatIsImportedStays(t *testing.T) {
	each(t, func(t *testing.T, c *catalog.Catalog) {
		d := digest.FromString("x")
		confirmed := catalog.Member{Size: 5, Confirmed: true}
		imported := catalog.Member{Size: 5, Confirmed: true, Imported: true}
		for _, step := range []struct{ add, want catalog.Member }{{confirmed, confirmed}, {imported, imported}, {confirmed, imported}, {catalog.Member{Size: 5}, imported}} {
			if c.Imported(d) != (step.want.Imported && step.add != imported) {
				t.Errorf("before %+v it is imported: %v", step.add, c.Imported(d))
			}
			if err := c.AddMembers("a.test/app", map[digest.Digest]catalog.Member{d: step.add}); err != nil {
				t.Fatal(err)
			}
			if got, ok := c.Member("a.test/app", d); !ok || got != step.want {
				t.Errorf("after %+v: %+v, %v; want %+v", step.add, got, ok, step.want)
			}
		}
		if _, ok := c.Member("b.test/app", d); ok {
			t.Error("it belongs to another repository")
		}
	})
}

func TestAFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, err := catalog.Open(path, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if err := c.Access().Put(fmt.Sprint("key ", i), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Access().Delete("key 7"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = catalog.Open(path, func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var n int
	if !c.Access().Get("key 999", &n) || n != 999 || c.Access().Get("key 7", &n) {
		t.Errorf("read again: %d", n)
	}
}

func TestADamagedFileIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, err := catalog.Open(path, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := c.SetTag("a.test/app", fmt.Sprint(i), catalog.Tag{Digest: digest.FromString("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(good); off += len(good)/50 + 1 {
		bad := slices.Clone(good)
		for i := off; i < min(off+100, len(bad)); i++ {
			bad[i] ^= 0xff
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := catalog.Open(path, func(err error) { t.Error(err) }); err == nil { // what it can read, it may
			_, _ = c.Tag("a.test/app", "1")
			_ = c.Close()
		}
	}
	if err := os.WriteFile(path, []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := catalog.Open(path, func(err error) { t.Error(err) }); err == nil {
		t.Error("opened")
		_ = c.Close()
	}
}
