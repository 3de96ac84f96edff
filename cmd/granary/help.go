package main

// What --help says of each command beside its flags, for those who have nothing else at hand: what
// it does, how it ends, and examples, which are indented.

const endsLikeAll = "The exit status is 0, 1 if it failed, or 2 if the command line or a setting cannot be understood."

func (serveCmd) Help() string {
	return `Runs until SIGTERM or SIGINT, and then lets responses that are under way end (--drain-timeout). Runtimes pull from --listen; people and commands ask --admin, where the dashboard is, too. Each flag is also an environment variable, as GRANARY_CACHE_SIZE for --cache-size, and a key of the file of --config.

` + endsLikeAll + `

Examples:

  granary serve
  granary serve --data-dir /var/lib/granary --cache-size 200GiB --registries docker.io,ghcr.io
  granary serve --cluster-secret-file /etc/granary/secret --join granary.kube-system.svc:5053 --zone eu-1a
  granary serve --admin 0.0.0.0:5051 --admin-token-file /etc/granary/token`
}

func (pullCmd) Help() string {
	return `Brings all that an image refers to, byte for byte, and checks it. Through the node that answers at --node or that holds --data-dir, else through one that lives as long as the command. Says what is not there and who refers to it.

The exit status is 0, 1 if it failed or anything is missing that the image is incomplete without, or 2 if the command line cannot be understood.

Examples:

  granary pull alpine:3
  granary pull alpine:3 -o oci:alpine --platform all --referrers
  granary pull ghcr.io/org/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef --json`
}

func (compatCmd) Help() string {
	return `Reads what an index and its images say of the machines that they suit, and judges each for this machine.

The exit status is 0, 1 if something is said and nothing suits, or if it failed, or 2 if the command line cannot be understood.

Examples:

  granary compat ghcr.io/org/simulation:v3
  granary compat --platform all --json ghcr.io/org/simulation:v3`
}

func (exportCmd) Help() string {
	return `Writes images with all that they refer to, so that import, or any program that reads OCI image layouts, has all of them.

The exit status is 0, 1 if it failed or anything is missing, or 2 if the command line cannot be understood.

Examples:

  granary export alpine:3 ghcr.io/org/app:v1 oci-archive:images.tar
  granary export --since oci:last-month ghcr.io/org/app:v2 oci:this-month`
}

func (importCmd) Help() string {
	return `All of the layout is verified before anything is sent to the node, which serves the images from then on while their registries cannot be asked. What is there is not sent again.

` + endsLikeAll + `

Examples:

  granary import oci-archive:images.tar
  granary import oci:build ghcr.io/org/app:v1`
}

func (tocCmd) Help() string {
	return `Reads the tables of contents of an image's layers through a node, without fetching the layers where they have one.

` + endsLikeAll + `

Examples:

  granary toc python:3.13
  granary toc --layer 1 --json python:3.13`
}

func (lsCmd) Help() string {
	return `Lists a directory of an image as it is when all layers lie over each other.

` + endsLikeAll + `

Examples:

  granary ls python:3.13 /usr/local/bin
  granary ls -l --recursive --layer 2 python:3.13`
}

func (catCmd) Help() string {
	return `Fetches no more of the image than the files take.

` + endsLikeAll + `

Examples:

  granary cat debian:13 /etc/os-release`
}

func (statCmd) Help() string {
	return `Shows type, mode, owner, size, times, extended attributes, and where in which layer a file is.

` + endsLikeAll + `

Examples:

  granary stat debian:13 /bin/sh /etc/passwd`
}

func (mountCmd) Help() string {
	return `Stays in the foreground, and takes the mount away with SIGTERM or SIGINT. Files are fetched as they are read, and what earlier runs of the image have read is fetched ahead.

` + endsLikeAll + `

Examples:

  granary mount python:3.13 /mnt/python
  granary mount --prefetch all --upper /var/tmp/changes python:3.13 /mnt/python`
}

func (statusCmd) Help() string {
	return `Asks the admin listener for what /api/v1/status answers, and with --json prints all of that; otherwise the most of it in words. The dashboard at the same address shows it live.

` + endsLikeAll + `

Examples:

  granary status
  granary status --json --node https://node-7:5051 --node-token-file ~/.granary-token`
}

func (configCmd) Help() string {
	return `Takes the flags of serve, and shows each setting as it would be, and whether it comes from a flag, the environment, a line of the file of --config, or is the default.

` + endsLikeAll + `

Examples:

  granary config
  granary config --config /etc/granary/config.yaml --json`
}

func (fsckCmd) Help() string {
	return `Hashes everything that is stored, and drops what is wrong, which is then fetched again when it is asked for. Through the node that holds --data-dir, or without one.

The exit status is 0, 1 if the store was damaged and is not repaired, or it failed, or 2 if the command line cannot be understood.

Examples:

  granary fsck
  granary fsck --repair --data-dir /var/lib/granary`
}

func (gcCmd) Help() string {
	return `Contents of files go first, then layers, each by the last read, and never one that is being read. Through the node that holds --data-dir, or without one.

` + endsLikeAll + `

Examples:

  granary gc --keep 20GiB
  granary gc --all`
}

func (preheatCmd) Help() string {
	return `All that the images refer to is fetched, as by pull, and each member does its own part. Private images are read with the node's own credentials, or with those of --docker-config, which are sent to the admin listener, go to other members as those of a pull do, and are kept nowhere. With --wait, interrupting the command ends the preheat.

With --at the node that is asked keeps it, also when it is started anew, and orders it of the others then; what it slept through it makes up for within 24 hours. Credentials are never kept: the node's own are used at that time, and none of yours are sent. Interrupting the command does not end it: --cancel does, by the ID that --list tells, at the node that was asked.

The exit status is 0, 1 if it failed, with --wait on any node, or 2 if the command line cannot be understood.

Examples:

  granary preheat --all-nodes --wait python:3.13 ghcr.io/org/app:v2
  granary preheat --zone eu-1a --platform linux/arm64 python:3.13
  granary preheat --all-nodes --at 02:00 ghcr.io/org/app:v3
  granary preheat --list
  granary preheat --cancel k3xw5tq2mz7a`
}

func (invalidateCmd) Help() string {
	return `The registry is asked about the tag the next time that somebody pulls it, whatever its --tag-policy. All members of the cluster are told.

The exit status is 0, 1 if it failed or a member was not told, or 2 if the command line cannot be understood.

Examples:

  granary invalidate ghcr.io/org/app:stable
  granary invalidate ghcr.io/org/app`
}

func (peersCmd) Help() string {
	return `Shows where members are, their zones and weights, whether they are up, how soon they begin to answer, what came from them, and for what they are not believed.

` + endsLikeAll + ` It is 1, too, if the node is no member of a cluster.

Examples:

  granary peers
  granary peers --json --node http://127.0.0.1:5051`
}

func (demoCmd) Help() string {
	return `Makes an image of a Go installation, and has three nodes pull it at once: cold, warm, and without the registry. Everything is in a temporary directory and on loopback.

` + endsLikeAll + `

Examples:

  granary demo
  granary demo --keep`
}

func (completionCmd) Help() string {
	return `Writes it to the standard output, to be read by the shell.

` + endsLikeAll + `

Examples:

  granary completion bash
  granary completion zsh
  granary completion fish`
}

func (versionCmd) Help() string {
	return `The version is that of the node that serve runs.

` + endsLikeAll + `

Examples:

  granary version`
}

func (configureCmd) Help() string {
	return `Adds the node to what is in the runtime's files already, and does nothing the second time. No runtime is restarted: the command says if one has to be.

` + endsLikeAll + `

Examples:

  granary configure containerd --dry-run
  granary configure podman --registry docker.io --registry ghcr.io --prepend
  granary configure containerd --undo`
}

func (doctorCmd) Help() string {
	return `Looks at the node, its directory, its upstreams, its members and the runtimes, and pulls a small image. Each finding has a cause and a remedy.

The exit status is 0, 1 if something is broken or it failed, or 2 if the command line or a setting cannot be understood.

Examples:

  granary doctor
  granary doctor --json --image ghcr.io/org/small:v1`
}

func (podOwnCmd) Help() string {
	return endsLikeAll + `

Examples:

  granary pod own /var/lib/granary 65532:65532`
}

func (podCheckCmd) Help() string {
	return endsLikeAll + `

Examples:

  granary pod check /readyz`
}

func (podAwaitCmd) Help() string {
	return endsLikeAll + `

Examples:

  granary pod await granary-all.kube-system.svc granary.kube-system.svc`
}

func (podRestCmd) Help() string {
	return `The exit status is 0.

Examples:

  granary pod rest`
}
