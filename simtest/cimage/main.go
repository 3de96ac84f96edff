// Command cimage copies an image with the library that podman, skopeo and CRI-O
// share, at a newer version than Debian's. It is a module of its own, for the
// library brings much that Granary does not need.
//
//	cimage REGISTRIES_CONF SOURCE DESTINATION
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/transports/alltransports"
	"github.com/containers/image/v5/types"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: cimage REGISTRIES_CONF SOURCE DESTINATION")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "cimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, conf, source, destination string) error {
	src, err := alltransports.ParseImageName(source)
	if err != nil {
		return err
	}
	dst, err := alltransports.ParseImageName(destination)
	if err != nil {
		return err
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	_, err = copy.Image(ctx, policy, dst, src, &copy.Options{
		SourceCtx: &types.SystemContext{
			SystemRegistriesConfPath:    conf,
			SystemRegistriesConfDirPath: "/nonexistent",
			DockerInsecureSkipTLSVerify: types.OptionalBoolTrue,
		},
		PreserveDigests: true,
		ReportWriter:    os.Stderr,
	})
	return err
}
