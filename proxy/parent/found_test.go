package parent

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
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
