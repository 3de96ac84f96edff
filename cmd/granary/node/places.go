package node

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/layout"
	"github.com/granary-oci/granary/proxy/upstream"
)

// onServer is what the place of an image layout on a web server begins with, before http: or
// https:.
const onServer = "oci+"

// isLocal reports whether a place is an image layout in a file system.
func isLocal(at string) bool {
	_, ok := layout.At(at, nil)
	return ok
}

func isLayout(at string) bool { return isLocal(at) || strings.HasPrefix(at, onServer) }

// checkLayoutFor bounds how long the start waits for the file system of a layout.
const checkLayoutFor = 5 * time.Second

// place is where a registry is read: the registry itself, a mirror of it, or a layout.
type place struct {
	repository func(name, authorization string) proxy.Upstream
	check      func() error // at the start
	close      func()
	layout     bool // it is an image layout
	local      bool // which is on this machine
}

func (u *upstreams) place(host, at string) (place, error) {
	if isLocal(at) {
		return u.local(host, at)
	}
	url, onServer := strings.CutPrefix(at, onServer)
	r, err := upstream.New(u.config(host, url))
	if err != nil {
		return place{}, err
	}
	p := place{
		repository: func(name, authorization string) proxy.Upstream {
			return u.counting(host, r.Repository(name).As(authorization))
		},
		check: func() error { return nil }, // a server may come later
		close: r.Close,
	}
	if onServer {
		l := layout.New(host, layout.NewWeb(r, url), u.faults.report)
		p.layout, p.repository = true, func(name, _ string) proxy.Upstream { return l.Repository(name) }
	}
	return p, nil
}

// counting counts what a registry limits.
func (u *upstreams) counting(host string, up proxy.Upstream) proxy.Upstream {
	if host != dockerHub {
		return up
	}
	return pulled{up, &u.metrics.demand.upstreamPulls}
}

// local returns the layout in a file system. At the start that may be missing, as before it is
// mounted, but not be something else.
func (u *upstreams) local(host, at string) (place, error) {
	kind, path, _ := strings.Cut(at, ":")
	path, err := filepath.Abs(path)
	if err != nil {
		return place{}, err
	}
	files, _ := layout.At(kind+":"+path, u.faults.report)
	l := layout.New(host, files, u.faults.report)
	return place{
		layout:     true,
		local:      true,
		repository: func(name, _ string) proxy.Upstream { return l.Repository(name) },
		check: func() error {
			ctx, cancel := context.WithTimeout(context.Background(), checkLayoutFor)
			defer cancel()
			err := l.Check(ctx)
			if upstream.Unreachable(err) {
				u.faults.log.Warn("a layout is not there yet, and is looked for when it is asked for something", "error", err)
				return nil
			}
			return err
		},
		close: func() {},
	}, nil
}

// itself returns which of the places of a registry is the registry itself, "" if all are
// layouts.
func (u *upstreams) itself(host string) (at string) {
	for _, place := range u.urls(host) {
		if !isLayout(place) {
			at = place
		}
	}
	return at
}

// public reports whether a registry has no other places than layouts, of which everything
// is public.
func (u *upstreams) public(host string) bool { return u.itself(host) == "" }
