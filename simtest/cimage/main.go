// Command cimage copies an image with the library that podman, skopeo and CRI-O
// share, at a newer version than Debian's. It is a module of its own, for the
// library brings much that Granary does not need.
//
// Digests are preserved, or it fails. With -all it copies all images of an index, as skopeo
// copy --all does.
//
//	cimage [-all] REGISTRIES_CONF SOURCE DESTINATION
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/transports/alltransports"
	"github.com/containers/image/v5/types"
)

func main() {
	all := flag.Bool("all", false, "")
	flag.Parse()
	if flag.NArg() != 3 {
		fmt.Fprintln(os.Stderr, "usage: cimage [-all] REGISTRIES_CONF SOURCE DESTINATION")
		os.Exit(2)
	}
	which := copy.CopySystemImage
	if *all {
		which = copy.CopyAllImages
	}
	if err := run(context.Background(), which, flag.Arg(0), flag.Arg(1), flag.Arg(2)); err != nil {
		fmt.Fprintln(os.Stderr, "cimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, which copy.ImageListSelection, conf, source, destination string) error {
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
		DestinationCtx:     &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue},
		ImageListSelection: which,
		PreserveDigests:    true,
		ReportWriter:       os.Stderr,
	})
	return err
}
