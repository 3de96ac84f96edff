package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
	"github.com/granary-oci/granary/simtest/peers/hostile"
)

// partition cuts the cluster in two. Each half still reaches the registry.
func (l *lab) partition(ctx context.Context, e event) (func(context.Context) error, error) {
	rng := rand.New(rand.NewPCG(e.Seed, 0))
	order := rng.Perm(l.count)
	cut := 1 + rng.IntN(l.count-1)
	var halves [2][]*netns.Space
	var names [2][]string
	for i, k := range order {
		side := 0
		if i >= cut {
			side = 1
		}
		halves[side] = append(halves[side], l.nodes[k].space)
		names[side] = append(names[side], fmt.Sprint(k+1))
	}
	l.log("        nodes %s do not reach nodes %s", strings.Join(names[0], ", "), strings.Join(names[1], ", "))
	end := l.history.begin(e, parted)
	return func(ctx context.Context) error {
		defer end()
		return netns.Heal(ctx, halves[0], halves[1])
	}, netns.Part(ctx, halves[0], halves[1])
}

// slowLink makes the link of a node's machine one of 8 Mbit/s each way.
func (l *lab) slowLink(ctx context.Context, e event) (func(context.Context) error, error) {
	n := l.nodes[e.Node]
	end := l.history.begin(e, other)
	return func(ctx context.Context) error {
		defer end()
		return l.bridge.Unshape(ctx, n.space)
	}, l.bridge.Shape(ctx, n.space, 8)
}

// corruptMember has a member join that is not what it seems, see [hostile].
func (l *lab) corruptMember(ctx context.Context, e event) (func(context.Context) error, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	home, how := l.homes[1+l.count], l.behaviour(e).Name
	args := []string{self, "hostile", how, home.address, l.file("secret"), zone}
	for _, n := range l.nodes {
		args = append(args, n.address+":5053")
	}
	end := l.history.begin(e, other)
	log := filepath.Join(l.logs, fmt.Sprintf("corrupt-%d.log", l.history.now().Milliseconds()))
	name := l.unnamed()
	p, err := netns.Start(log, home.space, args...)
	if err != nil {
		return nil, err
	}
	l.log("        the corrupt member is of the kind %s", how)
	id := ""
	err = p.Ready(ctx, func() bool { id, _, _ = strings.Cut(p.Output(), "\n"); return strings.Contains(p.Output(), "\n") })
	name(id, "it is a corrupt member: "+how)
	return func(context.Context) error {
		defer end()
		if !p.Alive() {
			return errors.New("the corrupt member has died: " + p.Output())
		}
		p.StopWithin(5 * time.Second)
		return nil
	}, err
}

// unnamed says that somebody is about to give cause for blame. name says who, and what for.
func (l *lab) unnamed() (name func(id, why string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nameless++
	return func(id, why string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.nameless--
		l.culprits[id] = why
	}
}

// behaviour is what a corrupt member does.
func (l *lab) behaviour(e event) hostile.Behaviour {
	var can []hostile.Behaviour
	for _, b := range hostile.Behaviours {
		if !b.Late || l.unproven == "upstream" {
			can = append(can, b)
		}
	}
	return can[e.Seed%uint64(len(can))]
}
