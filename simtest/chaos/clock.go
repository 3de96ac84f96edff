package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	granary "github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/simtest/netns"
)

// lookAtClock is between two looks of a node at how wrong its clock is.
const lookAtClock = 20 * time.Millisecond

// jumps are by how much a clock is wrong: a leap of a time server's, a wrong time zone, a battery that was empty.
var jumps = []time.Duration{10 * time.Minute, -10 * time.Minute, 3 * time.Hour, -3 * time.Hour, 40 * 24 * time.Hour, -40 * 24 * time.Hour}

// jump sets a node's clock, and sets it right again. Whatever the registry allowed meanwhile has the wrong date then, and is good for nothing
// before it has been allowed again.
func (l *lab) jump(ctx context.Context, e event) (func(context.Context) error, error) {
	n := l.nodes[e.Node]
	by := jumps[e.Seed%uint64(len(jumps))]
	l.log("        the clock of node %d is wrong by %v", e.Node+1, by)
	end := l.history.begin(e, jumped)
	return func(ctx context.Context) error {
		defer end()
		defer l.history.lose(e.Node, forever)
		return errors.Join(n.setClock(0), netns.Pause(ctx, 10*lookAtClock))
	}, n.setClock(by)
}

func (n *node) clockFile() string { return n.lab.file(fmt.Sprintf("clock%d", n.index+1)) }

func (n *node) setClock(by time.Duration) error {
	if err := os.WriteFile(n.clockFile()+".new", []byte(by.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(n.clockFile()+".new", n.clockFile())
}

// serveClocked is "granary serve" with a clock that is wrong by what a file says, which is read all the time.
//
//	chaos clocked FILE [FLAGS of granary serve]
func serveClocked(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := runClocked(ctx, log, args); err != nil {
		log.Error("the node has ended", "error", err)
		return 1
	}
	return 0
}

func runClocked(ctx context.Context, log *slog.Logger, args []string) error {
	var flags struct {
		Clock          string `arg:""`
		granary.Config `embed:""`
	}
	parser, err := kong.New(&flags, kong.Vars{"data_dir": granary.DefaultDataDir()})
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return err
	}
	var wrong atomic.Int64
	go func() {
		for netns.Pause(ctx, lookAtClock) == nil {
			text, _ := os.ReadFile(flags.Clock)
			if by, err := time.ParseDuration(strings.TrimSpace(string(text))); err == nil {
				wrong.Store(int64(by))
			}
		}
	}()
	flags.Now = func() time.Time { return time.Now().Add(time.Duration(wrong.Load())) }
	n, err := granary.New(flags.Config, log)
	if err != nil {
		return err
	}
	return n.Run(ctx)
}
