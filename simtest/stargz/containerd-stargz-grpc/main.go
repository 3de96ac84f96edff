// Command containerd-stargz-grpc is the stargz-snapshotter: its service, behind a socket.
// Its own command is in a module that names another by a folder, which cannot be
// installed.
//
// It is a module of its own, to keep containerd and Kubernetes out of the product's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"

	"github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/service"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// main takes the socket to listen at, the directory to keep all in, and a configuration
// like that of the original, as JSON. It serves until SIGTERM.
func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: containerd-stargz-grpc SOCKET ROOT CONFIG")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-stargz-grpc:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, socket, root, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config service.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := log.SetLevel("debug"); err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, &config)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	l, err := net.Listen("unix", socket)
	if err != nil {
		return errors.Join(err, snapshotter.Close())
	}
	context.AfterFunc(ctx, server.Stop)
	return errors.Join(server.Serve(l), snapshotter.Close())
}
