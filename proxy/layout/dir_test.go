package layout

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/proxy/upstream"
)

// fileInfo is a file of a size, that was changed at a time.
type fileInfo struct {
	fs.FileInfo
	size    int64
	changed time.Time
}

func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) ModTime() time.Time { return i.changed }
func (i fileInfo) Sys() any           { return nil }

// TestVersion: a file that was changed just now has none, for it may change again within
// one tick of the file system's clock.
func TestVersion(t *testing.T) {
	now := time.Now()
	old := fileInfo{size: 1, changed: now.Add(-time.Hour)}
	if version(old) == "" || version(old) != version(old) {
		t.Error("an old file has no version")
	}
	for _, other := range []fileInfo{{size: 2, changed: old.changed}, {size: 1, changed: old.changed.Add(1)}} {
		if version(other) == version(old) {
			t.Errorf("%v has the version of %v", other, old)
		}
	}
	for _, recent := range []time.Time{now, now.Add(-time.Second), now.Add(time.Hour)} {
		if v := version(fileInfo{size: 1, changed: recent}); v != "" {
			t.Errorf("a file of %v has version %q", now.Sub(recent), v)
		}
	}
}

// TestAFileThatWasReplacedOnTheServer is read again by its name, once.
func TestAFileThatWasReplacedOnTheServer(t *testing.T) {
	stale := &fs.PathError{Op: "read", Path: "x", Err: syscall.ESTALE}
	for times, want := range map[int]bool{0: true, 1: true, 2: false} {
		tries := 0
		v, err := await(t.Context(), NewDir("/none", nil), "x", func() (int, error) {
			if tries++; tries <= times {
				return 0, stale
			}
			return 7, nil
		})
		if (v == 7 && err == nil) != want {
			t.Errorf("stale %d times: %d, %v", times, v, err)
		}
	}
}

// TestAFileSystemThatHangs holds nobody longer than they would wait for a registry, and
// takes no more threads than it has places.
func TestAFileSystemThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, mended := NewDir("/none", nil), make(chan struct{})
		started := make(chan struct{}, 2*filesAtOnce)
		hang := func() (int, error) { started <- struct{}{}; <-mended; return 1, nil }
		for range 2 * filesAtOnce {
			go func() {
				if _, err := await(t.Context(), d, "x", hang); !upstream.Unreachable(err) {
					t.Errorf("%v", err)
				}
			}()
		}
		synctest.Wait()
		if len(started) != filesAtOnce {
			t.Errorf("%d operations are under way", len(started))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := await(ctx, d, "x", hang); !errors.Is(err, context.Canceled) || upstream.Unreachable(err) {
			t.Errorf("of a caller that has left: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := await(short, d, "x", hang); !upstream.Unreachable(err) {
			t.Errorf("of a caller without much time: %v", err)
		}
		time.Sleep(fileFor)
		close(mended)
		synctest.Wait()
		if v, err := await(t.Context(), d, "x", func() (int, error) { return 2, nil }); v != 2 || err != nil {
			t.Errorf("mended: %d, %v", v, err)
		}
	})
}
