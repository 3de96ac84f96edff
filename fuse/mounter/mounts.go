package mounter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/granary-oci/granary/fuse"
)

// errEnding says that a server takes no more mounts.
var errEnding = errors.New("the mounter ends")

// mount mounts a layer, unless it is mounted there already.
func (s *Server) mount(ctx context.Context, want Mount) error {
	m, mine, err := s.take(want)
	if err != nil {
		return err
	}
	if mine {
		stop := context.AfterFunc(ctx, m.cancel) // while nobody else can have it
		go s.serve(m)
		defer stop()
	}
	select {
	case <-m.ready:
	case <-ctx.Done():
		if mine {
			<-m.gone
		}
		return ctx.Err()
	}
	if m.err == nil && mine && ctx.Err() != nil { // too late: who asked does not know of it
		<-m.gone
		return ctx.Err()
	}
	return m.err
}

// take returns the mount at a directory: what is there, or what the caller is to make.
func (s *Server) take(want Mount) (m *mounted, mine bool, err error) {
	if !within(want.Dir, s.cfg.Below) {
		return nil, false, fmt.Errorf("mount at %s: it is not in %s", want.Dir, s.cfg.Below)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.mounts[want.Dir]; m != nil {
		if m.Digest != want.Digest || m.ctx.Err() != nil {
			return nil, false, fmt.Errorf("mount at %s: layer %s is there, or goes", want.Dir, m.Digest)
		}
		return m, false, nil
	}
	if s.ending {
		return nil, false, errEnding
	}
	if len(s.mounts) >= maxMounts {
		return nil, false, fmt.Errorf("mount at %s: there are %d mounts", want.Dir, len(s.mounts))
	}
	m = &mounted{Mount: want, ready: make(chan struct{}), gone: make(chan struct{})}
	m.Coming = nil
	m.ctx, m.cancel = context.WithCancel(context.Background())
	s.mounts[want.Dir] = m
	s.serving.Add(1)
	return m, true, nil
}

// within reports whether a clean path is in a directory.
func within(path, dir string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && strings.HasPrefix(path, dir+"/")
}

// serve opens and mounts a layer, and serves it until it is unmounted.
func (s *Server) serve(m *mounted) {
	defer s.serving.Done()
	ready := false
	err := s.open(m, func() { ready = true; close(m.ready) })
	m.cancel()
	s.forget(m)
	if ready {
		s.cfg.Log.Info("unmounted", "layer", m.Digest, "dir", m.Dir, "error", err)
	} else {
		m.err = err
		close(m.ready)
	}
	close(m.gone)
}

// forget makes room for another mount at the same directory.
func (s *Server) forget(m *mounted) {
	s.mu.Lock()
	if s.mounts[m.Dir] == m {
		delete(s.mounts, m.Dir)
	}
	s.mu.Unlock()
	s.mayBeIdle()
}

func (s *Server) open(m *mounted, ready func()) error {
	begin := time.Now()
	f, err := s.cfg.Open(m.ctx, m.Layer)
	if err != nil {
		return fmt.Errorf("layer %s: %w", m.Digest, err)
	}
	if m.ctx.Err() != nil {
		return m.ctx.Err()
	}
	return f.Serve(m.ctx, m.Dir, func() {
		s.cfg.Log.Info("mounted", "image", m.Image, "layer", m.Digest, "dir", m.Dir, "took", time.Since(begin).Round(time.Millisecond))
		ready()
	})
}

// isMounted says whether a layer is mounted and served.
func (s *Server) isMounted(ctx context.Context, want Mount) error {
	s.mu.Lock()
	m := s.mounts[want.Dir]
	s.mu.Unlock()
	if m != nil && m.served() {
		if fuse.Mounted(m.Dir) {
			return nil
		}
		m.cancel() // somebody has taken it away
		select {
		case <-m.gone:
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%s: %w", want.Dir, ErrNotMounted)
}

// served reports whether a mount was made, and is not to go.
func (m *mounted) served() bool { return m.made() && m.err == nil && m.ctx.Err() == nil }

// unmount unmounts what is mounted at a directory, if anything is. It is taken out of the
// tree of files, and served until nobody uses it any more.
func (s *Server) unmount(ctx context.Context, want Mount) error {
	s.mu.Lock()
	m := s.mounts[want.Dir]
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	m.cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.gone:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", want.Dir, ctx.Err())
		case <-tick.C:
		}
		if m.made() && !fuse.Mounted(m.Dir) {
			s.forget(m)
			return nil
		}
	}
}

// made reports whether a mount was made, or has failed.
func (m *mounted) made() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// takeOut takes no more mounts, and takes all that there are out of the tree of files.
// Only then may another server take away what it finds there.
func (s *Server) takeOut() {
	s.mu.Lock()
	s.ending = true
	var all []Mount
	for _, m := range s.mounts {
		all = append(all, m.Mount)
		m.cancel()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), askFor)
	defer cancel()
	for _, m := range all {
		if err := s.unmount(ctx, m); err != nil {
			s.cfg.Log.Error("a mount stays", "error", err)
		}
	}
}
