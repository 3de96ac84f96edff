package parent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// TestSearchesAreBounded: however many blobs are read, a few are looked for at a time, and the others later.
func TestSearchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, err := New(nil, nil, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		begun, end := 0, make(chan struct{})
		ps.Find(t.Context(), func(context.Context, digest.Digest) ([]Config, error) {
			ps.finder.mu.Lock()
			begun++
			ps.finder.mu.Unlock()
			<-end
			return nil, nil
		})
		read := func() {
			for i := range 3 * searchAtOnce {
				ps.sitesOf(digest.FromString(fmt.Sprint(i)))
			}
			synctest.Wait()
		}
		read()
		read()
		if begun != searchAtOnce {
			t.Errorf("%d searches at once", begun)
		}
		close(end)
		time.Sleep(time.Second)
		for range 3 {
			read()
		}
		if begun != 3*searchAtOnce {
			t.Errorf("%d searches in the end", begun)
		}
	})
}

// TestASiteThatMoves is asked where it was found last.
func TestASiteThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, err := New(nil, nil, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		at, dialled := "old", ""
		ps.Find(t.Context(), func(context.Context, digest.Digest) ([]Config, error) {
			here := at
			return []Config{siteAt("one", func() { dialled = here })}, nil
		})
		read := func() string {
			d := digest.FromString("blob")
			ps.sitesOf(d) // which somebody looks for now
			synctest.Wait()
			dialled = ""
			_, err := ps.Found(ref.Repository{Host: "registry.test", Name: "app"}).Blob().Get(t.Context(), chunk.Ref{Blob: d, Total: 2 << 20, Size: chunk.Size})
			if !errors.Is(err, chunk.ErrNotFound) {
				t.Error(err)
			}
			return dialled
		}
		if where := read(); where != "old" {
			t.Errorf("it is asked at %q", where)
		}
		at = "new"
		time.Sleep(foundFor + time.Second)
		if where := read(); where != "new" {
			t.Errorf("it has moved, and is asked at %q", where)
		}
	})
}

// siteAt is a site that cannot be connected to.
func siteAt(name string, dialled func()) Config {
	return Config{Name: name, Upstream: upstream.Config{
		URL: "http://" + name,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			dialled()
			return nil, errors.New("nobody is there")
		},
	}}
}

// TestFaultsLeaveRoomForOthers: whoever was at fault first is forgotten for a site that is not, and who was last is
// remembered.
func TestFaultsLeaveRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps, err := New(nil, nil, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		found := ""
		ps.Find(t.Context(), func(context.Context, digest.Digest) ([]Config, error) {
			return []Config{siteAt(found, func() {})}, nil
		})
		find := func(name string) []*Parent {
			d := digest.FromString(name)
			found = name
			ps.sitesOf(d)
			synctest.Wait()
			return ps.sitesOf(d)
		}
		for i := range maxSites {
			p := find(fmt.Sprint("liar", i))[0]
			ps.fault(p, errors.New("it lied"))
			time.Sleep(100 * time.Millisecond)
		}
		for i := range maxSites {
			if len(find(fmt.Sprint("site", i))) != 1 {
				t.Fatalf("there is no room for site %d", i)
			}
		}
		states := make(map[string]int)
		for _, s := range ps.Status() {
			states[s.State]++
			if s.Name == "liar0" {
				t.Error("whose fault is longest ago is remembered")
			}
		}
		if states["quarantined"] != maxAtFault || states["up"] != maxSites-maxAtFault {
			t.Errorf("states are %v", states)
		}
	})
}
