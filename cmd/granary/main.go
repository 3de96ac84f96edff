// Command granary distributes OCI images: a node that answers container runtimes
// as a registry does, from a store of verified chunks and from the registries
// that own the images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// cli is the command line: the commands, and the settings that all share.
type cli struct {
	Config    string `name:"config" placeholder:"FILE" env:"GRANARY_CONFIG" help:"YAML file of settings; its keys are the names of the flags."`
	LogLevel  string `name:"log-level" default:"info" enum:"debug,info,warn,error" placeholder:"LEVEL" help:"Least severe messages to log: debug, info, warn or error."`
	LogFormat string `name:"log-format" default:"text" enum:"text,json" placeholder:"FORMAT" help:"How to log: text or json."`

	Serve    serveCmd      `cmd:"" help:"Run a node."`
	Pull     pullCmd       `cmd:"" help:"Pull an image through a node, to warm it or into an OCI image layout."`
	Compat   compatCmd     `cmd:"" help:"Show which image of an index suits this machine, and why others do not."`
	Export   exportCmd     `cmd:"" help:"Write images to an OCI image layout, in a directory or an archive."`
	Import   importCmd     `cmd:"" help:"Give a node images from an OCI image layout, to serve without their registries."`
	TOC      tocCmd        `cmd:"" name:"toc" help:"Show what is known of an image's layers from their tables of contents."`
	Ls       lsCmd         `cmd:"" name:"ls" help:"List files of an image, without pulling it."`
	Cat      catCmd        `cmd:"" name:"cat" help:"Write files of an image to the standard output."`
	Stat     statCmd       `cmd:"" name:"stat" help:"Show all that is known of files of an image."`
	Mount    mountCmd      `cmd:"" help:"Mount an image as a file system, before it has arrived."`
	Stack    assembleCmd   `cmd:"" hidden:"" name:"assemble-mount" help:"Mount layers for mount, which starts it."`
	Status   statusCmd     `cmd:"" help:"Show what a running node holds and has served."`
	Show     configCmd     `cmd:"" name:"config" help:"Show the effective settings of serve, and where each comes from."`
	Fsck     fsckCmd       `cmd:"" help:"Check every chunk of a store, and drop what is wrong."`
	GC       gcCmd         `cmd:"" name:"gc" help:"Evict what has not been read for longest."`
	Preheat  preheatCmd    `cmd:"" help:"Have nodes fetch images before anybody pulls them."`
	Evict    evictCmd      `cmd:"" help:"Take an image out of a node's store, or of all."`
	Forget   invalidateCmd `cmd:"" name:"invalidate" help:"Make a node ask its upstream about a tag again."`
	Peers    peersCmd      `cmd:"" help:"Show the members of a node's cluster, and what the node makes of them."`
	Setup    configureCmd  `cmd:"" name:"configure" help:"Make a container runtime pull through a node, or undo that."`
	Doctor   doctorCmd     `cmd:"" help:"Find out what keeps a node, its cluster and the runtimes before it from working."`
	Mounter  mounterCmd    `cmd:"" hidden:"" help:"Keep the mounts of a node's snapshotter; the node starts it."`
	Pod      podCmd        `cmd:"" help:"What the pods of the Helm chart do beside serving."`
	Demo     demoCmd       `cmd:"" help:"Show a cluster at work: a registry, three nodes and an image, all in this process."`
	Complete completionCmd `cmd:"" name:"completion" help:"Write what makes a shell complete command lines."`
	Version  versionCmd    `cmd:"" help:"Show the version."`
}

// env is what commands get from the process.
type env struct {
	ctx    context.Context // ends with SIGINT or SIGTERM
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs one command line and returns the process's exit status: 0, 1 for a
// command that failed, or 2 for one that cannot be understood.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	s, err := newSettings(args, os.LookupEnv)
	if err != nil {
		fmt.Fprintln(stderr, "granary:", err)
		return 2
	}
	exit := -1
	parser, err := kong.New(&c,
		kong.Name("granary"),
		kong.Description("Peer-to-peer distribution of OCI images: a registry mirror with a verified chunk store."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exit = code }),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Vars{"data_dir": node.DefaultDataDir(), "platform": defaultPlatform()},
		kong.Resolvers(s),
	)
	if err != nil {
		fmt.Fprintln(stderr, "granary: the command line is declared wrongly:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 { // --help was asked for and given
		return exit
	}
	if err == nil {
		err = s.unused()
	}
	if err != nil {
		fmt.Fprintf(stderr, "granary: %v\nTry 'granary --help'.\n", err)
		return 2
	}
	e := env{ctx: ctx, stdout: stdout, stderr: stderr, log: newLogger(stderr, c.LogLevel, c.LogFormat)}
	err = parsed.Run(&e, s, &c)
	var bad *node.SettingError
	switch {
	case errors.As(err, &bad):
		fmt.Fprintln(stderr, "granary:", s.locate(bad))
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "granary:", err)
		return 1
	}
	return 0
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // kong has checked it
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// quietLogger logs what a command's user should know of the node inside it.
func quietLogger(w io.Writer) *slog.Logger { return newLogger(w, "warn", "text") }
