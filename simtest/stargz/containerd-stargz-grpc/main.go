// Command containerd-stargz-grpc is the stargz-snapshotter: its service, behind a socket.
// Its own command is in a module that names another by a folder, which cannot be
// installed. It also reads blobs as the service does.
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
// like that of the original, as JSON. It serves until SIGTERM. With "read" it takes a
// configuration, an image, and the digest and the size of a layer; see read.
func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 6 && os.Args[1] == "read":
		err = read(ctx, os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	case len(os.Args) == 4:
		err = serve(ctx, os.Args[1], os.Args[2], os.Args[3])
	default:
		err = errors.New("usage: containerd-stargz-grpc SOCKET ROOT CONFIG | read CONFIG IMAGE DIGEST SIZE")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd-stargz-grpc:", err)
		os.Exit(1)
	}
}

func load(file string) (config service.Config, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return config, err
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return config, fmt.Errorf("%s: %w", file, err)
	}
	return config, log.SetLevel("debug")
}

func serve(ctx context.Context, socket, root, file string) error {
	config, err := load(file)
	if err != nil {
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
