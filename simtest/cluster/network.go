package main

import (
	"context"
	"net/http"

	"github.com/granary-oci/granary/simtest/netns"
)

// space is a machine, with clients on it.
type space struct {
	*netns.Space
	client *http.Client
}

const namePrefix = "granary-c"

// addSpace makes a machine whose egress has a rate, in Mbit/s, and also what comes in if both is set.
func addSpace(ctx context.Context, b *netns.Bridge, label string, number, rate int, both bool) (*space, error) {
	s, err := b.Add(ctx, label, number)
	if err != nil {
		return nil, err
	}
	shape := b.ShapeOut
	if both {
		shape = b.Shape
	}
	return &space{s, s.Client()}, shape(ctx, s, rate)
}

// part makes what members of one half send to the other vanish, and heal undoes it.
func part(ctx context.Context, a, b []*space) error { return netns.Part(ctx, bare(a), bare(b)) }
func heal(ctx context.Context, a, b []*space) error { return netns.Heal(ctx, bare(a), bare(b)) }

func bare(all []*space) (spaces []*netns.Space) {
	for _, s := range all {
		spaces = append(spaces, s.Space)
	}
	return spaces
}
