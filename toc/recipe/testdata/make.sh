#!/usr/bin/env bash
# Makes the layers in this folder anew, each by the program that it is named after. Takes
# Debian's buildah, pigz and libdeflate-tools, and node.
set -euo pipefail
cd "$(dirname "$0")"
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot TZ=UTC

python3 - "$dir/content" <<'P'
import sys
lines = ((b"line %d: of a text that packs well\n" % (i * 7919 % 104729)) * 9 for i in range(10_000))
open(sys.argv[1], "wb").write(b"".join(lines)[:2_600_000])
P
touch -d @1700000000 "$dir/content"
buildah() { command buildah --root "$dir/root" --runroot "$dir/run" "$@" >/dev/null; }
buildah from --name c scratch
buildah copy c "$dir/content" /content
buildah commit --timestamp 1700000000 --disable-compression=false c "oci:$dir/buildah:x"
for blob in "$dir"/buildah/blobs/sha256/*; do
	if gzip -t "$blob" 2>/dev/null; then cp "$blob" buildah.tar.gz; fi
done

{ gzip -dc buildah.tar.gz || true; } 2>&- | head -c 204800 >"$dir/layer.tar"
touch -d @1700000000 "$dir/layer.tar"
gzip -c "$dir/layer.tar" >gzip.tar.gz
pigz -nc "$dir/layer.tar" >pigz.tar.gz
libdeflate-gzip -nc "$dir/layer.tar" >libdeflate.tar.gz
python3 -c 'import gzip, sys; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read(), mtime=0))' <"$dir/layer.tar" >python.tar.gz
node -e 'process.stdout.write(require("zlib").gzipSync(require("fs").readFileSync(0)))' <"$dir/layer.tar" >node.tar.gz
