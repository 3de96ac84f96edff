#!/usr/bin/env bash
# Installs what the tests in simtest use: Debian packages, and newer programs,
# built from their modules into the directory given. Takes root. May be run again.
set -euo pipefail
bin=${1:?usage: install.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

packages=(containerd runc podman skopeo docker-registry docker.io nginx-light fuse3 iproute2 nftables curl e2fsprogs xfsprogs btrfs-progs openssl procps ca-certificates erofs-utils squashfs-tools umoci mmdebstrap systemd systemd-container chromium zsh fish patch)
command -v npm >/dev/null || packages+=(npm)
missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	echo "apt-get install ${missing[*]}"
	# Packages start their daemons when they are installed; nothing here wants them.
	policy=/usr/sbin/policy-rc.d
	[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# udev would make it so; a container may have no udev.
[ ! -c /dev/fuse ] || chmod 0666 /dev/fuse

# build PROGRAM MODULE builds a program once for each version of it.
build() {
	local stamp="$bin/.$1"
	[ -x "$bin/$1" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] && return
	echo "go install $2"
	GOBIN=$bin CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install "$2"
	echo "$2" >"$stamp"
}
build crane github.com/google/go-containerregistry/cmd/crane@v0.22.1
build registry github.com/distribution/distribution/v3/cmd/registry@v3.0.0
build regctl github.com/regclient/regclient/cmd/regctl@v0.11.7
build helm helm.sh/helm/v3/cmd/helm@v3.22.0
build containerd github.com/containerd/containerd/v2/cmd/containerd@v2.4.2
build ctr github.com/containerd/containerd/v2/cmd/ctr@v2.4.2
build containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@v2.4.2

# apart PROGRAM MODULE PACKAGE TAGS is build for a module that go install refuses, because
# its go.mod says which versions of others it will not have.
apart() {
	local stamp="$bin/.$1" dir
	[ -x "$bin/$1" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] && return
	echo "go build $2 $3"
	dir=$(cd / && go mod download -json "$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	CGO_ENABLED=0 go build -C "$dir" -buildvcs=false -ldflags "-s -w" -o "$bin/$1" -tags "$4" "./$3"
	echo "$2" >"$stamp"
}
apart buildkitd github.com/moby/buildkit@v0.34.2 cmd/buildkitd ""
apart buildctl github.com/moby/buildkit@v0.34.2 cmd/buildctl ""
apart crio github.com/cri-o/cri-o@v1.34.0 cmd/crio containers_image_openpgp,exclude_graphdriver_btrfs

# ours NAME TAGS builds a program of our own, which is a module of its own.
ours() {
	local to="$bin/${1##*/}"
	[ -x "$to" ] && [ ! "$here/../$1/main.go" -nt "$to" ] && return
	echo "go build simtest/$1"
	(cd "$here/../$1" && CGO_ENABLED=0 go build -buildvcs=false -o "$to" -tags "$2" .)
}
ours cimage "containers_image_openpgp exclude_graphdriver_btrfs containers_image_docker_daemon_stub"
ours cri ""
ours deploy/strict ""
ours layers/chunked ""
ours stargz/containerd-stargz-grpc ""
ours dashboard/browser ""

# What simtest/dashboard finds out with whether everybody can read a page.
axe=4.14.1 sum=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5
if [ "$(cat "$bin/.axe" 2>/dev/null)" != "$axe" ]; then
	echo "npm pack axe-core@$axe"
	pack=$(mktemp -d)
	(cd "$pack" && npm pack --silent "axe-core@$axe" >/dev/null && echo "$sum  axe-core-$axe.tgz" | sha512sum --quiet -c)
	tar -xzf "$pack/axe-core-$axe.tgz" -O package/axe.min.js >"$bin/axe.min.js"
	rm -r "$pack"
	echo "$axe" >"$bin/.axe"
fi
ours trips/olareg ""

# The base layer of the images in simtest/layers.
if [ ! -e "$bin/debian.tar" ]; then
	echo "mmdebstrap bookworm"
	debian() { SOURCE_DATE_EPOCH=1750000000 mmdebstrap --quiet --variant=essential \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		bookworm "$bin/debian.new.tar" http://deb.debian.org/debian; }
	debian || debian || debian # a mirror may fail for a moment
	mv "$bin/debian.new.tar" "$bin/debian.tar"
fi
