package sites

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Outcome is what something has done to the line of a site.
type Outcome struct {
	Took    time.Duration
	Payload int64 // bytes that came out of the line toward the site, of TCP and UDP
	All     int64 // with their headers and those of IP
	Back    int64 // the same, toward the hub
	Counted int64 // bytes of answers that the nodes say have come from their parent
}

// Watch is what there was when something began.
type Watch struct {
	site  *Site
	begin time.Time
	was   Outcome
}

// Watch begins to measure.
func (s *Site) Watch(ctx context.Context) (*Watch, error) {
	counted, err := s.fromParents(ctx)
	return &Watch{s, time.Now(), s.count(counted)}, err
}

func (s *Site) count(counted int64) Outcome {
	return Outcome{Payload: s.line.ToFar.Payload.Load(), All: s.line.ToFar.All.Load(), Back: s.line.ToNear.All.Load(), Counted: counted}
}

// Read returns what has happened since.
func (w *Watch) Read(ctx context.Context) (Outcome, error) {
	o := w.site.count(0)
	o.Took = time.Since(w.begin)
	counted, err := w.site.fromParents(ctx)
	o.Payload, o.All, o.Back, o.Counted = o.Payload-w.was.Payload, o.All-w.was.All, o.Back-w.was.Back, counted-w.was.Counted
	return o, err
}

// Quiet waits until nothing has come out of the line for so long.
func (s *Site) Quiet(ctx context.Context, long time.Duration) error {
	for was := int64(-1); was != s.line.ToFar.All.Load(); {
		was = s.line.ToFar.All.Load()
		if err := pause(ctx, long); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Measure measures what do does to the line.
func (s *Site) Measure(ctx context.Context, do func(context.Context) error) (Outcome, error) {
	w, err := s.Watch(ctx)
	if err != nil {
		return Outcome{}, err
	}
	if err := do(ctx); err != nil {
		return Outcome{}, fmt.Errorf("site %d, by %s: %w", s.number, s.By, err)
	}
	return w.Read(ctx)
}

// fromParents returns the bytes of answers that have come to the nodes of a site from their parent, as they count them.
func (s *Site) fromParents(ctx context.Context) (sum int64, err error) {
	for _, n := range s.Nodes {
		is, err := n.Status(ctx)
		if err != nil {
			return 0, err
		}
		for _, l := range is.Links {
			if strings.HasPrefix(l.Link, "parent ") {
				sum += l.Today.In
			}
		}
	}
	return sum, nil
}
