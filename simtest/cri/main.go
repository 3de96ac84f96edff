// Command cri pulls an image through the container runtime interface, as a
// kubelet does, with the credentials of a pull secret.
//
// It is a module of its own, to keep Kubernetes out of the product's.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// main takes the runtime's socket, the image and, optionally, a user and a
// password. It prints what the runtime calls the image.
func main() {
	if len(os.Args) != 3 && len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: cri SOCKET IMAGE [USER PASSWORD]")
		os.Exit(2)
	}
	var auth *runtime.AuthConfig
	if len(os.Args) == 5 {
		auth = &runtime.AuthConfig{Username: os.Args[3], Password: os.Args[4]}
	}
	if err := pull(os.Args[1], os.Args[2], auth); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

func pull(socket, image string, auth *runtime.AuthConfig) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	resp, err := runtime.NewImageServiceClient(conn).PullImage(ctx, &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: image}, Auth: auth,
	})
	if err != nil {
		return err
	}
	fmt.Println(resp.ImageRef)
	return nil
}
