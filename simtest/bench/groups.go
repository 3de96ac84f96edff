package main

import (
	"context"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

// scale is how much is measured.
type scale string

const (
	quick scale = "quick"
	usual scale = "usual"
	full  scale = "full"
)

// group is measurements that are made together.
type group struct {
	name, title string
	needs       []string // programs, and root
	limit       time.Duration
	measure     func(ctx context.Context, b *bench, into *figures.Set) error
	onlyFull    bool // it takes too long for other runs
	// quotes are the rows that README.md has: what was measured, and in which way Granary was run if there are several.
	quotes []string
}

func names() (all []string) {
	for _, g := range groups {
		all = append(all, g.name)
	}
	return all
}

// groups are all that is measured.
var groups = []group{
	{
		name: "warm", title: "A blob that the server has, over loopback, one client",
		limit: 10 * time.Minute, measure: inLab((*lab).warmBlob),
		quotes: []string{"warm blob of 1 GiB"},
	},
	{
		name: "cold", title: "A blob that only the registry has, over loopback, one client",
		limit: 20 * time.Minute, measure: inLab((*lab).coldBlob),
		quotes: []string{"cold blob of 512 MiB"},
	},
	{
		name: "link", title: "The same over a link of 1 Gbit/s",
		needs: []string{"root", "ip", "tc", "curl"},
		limit: 10 * time.Minute, measure: inLab((*lab).link),
		quotes: []string{"cold blob of 512 MiB over 1 Gbit/s"},
	},
	{
		name: "ranges", title: "Random ranges of a warm blob, one after the other",
		limit: 10 * time.Minute, measure: inLab((*lab).ranges),
		quotes: []string{"range of 4 KiB, median", "range of 4 KiB, 99th percentile"},
	},
	{
		name: "clients", title: "64 clients at once, each another blob of 24 MiB",
		limit: 10 * time.Minute, measure: inLab((*lab).clients),
		quotes: []string{"64 clients, cold: peak of resident memory"},
	},
	{
		name: "resolve", title: "Tags resolved by HEAD",
		limit: 30 * time.Minute, measure: inLab((*lab).resolve),
		quotes: []string{"tags, 10000 by 16 clients, again", "tags, 10000 by 16 clients: peak of resident memory", "tags, one by 1000 clients at once: questions to the registry"},
	},
	{
		name: "dataplane", title: "Chunks between two members of a cluster, each hashed, beside HTTPS (`simtest/dataplane`)",
		limit: 15 * time.Minute, measure: command("dataplane", "-size 256 -rounds 3", "-rounds 5", "-rounds 11"),
		quotes: []string{"a blob between two members, 1024 MiB, again"},
	},
	{
		name: "cluster", title: "A cold image in all nodes of a cluster at once: the registry's link carries 200 Mbit/s, that of each node 1 Gbit/s each way (`simtest/cluster`)",
		needs: []string{"root", "ip", "tc", "docker-registry"},
		limit: 2 * time.Hour, measure: command("cluster", "-n 4 -image small0", "-n 8 -runs 3", "-n 4 -n 8 -image image190 -image blob1g -rows direct,granary,staggered -runs 5"),
		quotes: []string{"8 nodes, 190 MB: slowest client", "8 nodes, 190 MB: slowest client beside the bound", "8 nodes, 190 MB: bytes that left the registry", "8 nodes, 190 MB: CPU of all nodes"},
	},
	{
		name: "sim", title: "Simulated clusters, in virtual time (`simtest/sim`)",
		limit: 3 * time.Hour, measure: command("sim", "-scenario 1,4,7", "", "-full"),
	},
	{
		name: "edges", title: "Two sites of three nodes, each at the end of a line of 50 Mbit/s and 80 ms, pull an image at once (`simtest/edges`)",
		needs: []string{"root", "ip", "tc", "nft"},
		limit: time.Hour, measure: command("edges", "-runs 1 -size 24000000 -rows direct,cold", "-runs 3 -rows direct,cold,warm", "-runs 5"),
		quotes: []string{"sites of three nodes, 96 MB, by QUIC: slowest client", "sites of three nodes, 96 MB, by QUIC: slowest client: the hub has it", "sites of three nodes, 96 MB, by QUIC: out of the line, with headers"},
	},
	{
		name: "updates", title: "The new version of an image at the end of such a line, where the older one is (`simtest/updates -line`)",
		needs: []string{"root", "ip", "tc", "nft", "mmdebstrap", "npm"}, onlyFull: true,
		limit: 3 * time.Hour, measure: command("updates", "", "", "-line -runs 3"),
	},
	{
		name: "start", title: "Until the first command of an image has printed, behind 200 Mbit/s and 10 ms (`simtest/start`)",
		needs: []string{"root", "ip", "tc", "nsenter", "chroot", "mmdebstrap", "mkfs.erofs", "mksquashfs", "chunked", "registry", "containerd", "ctr"},
		limit: 2 * time.Hour, measure: command("start", "-small -runs 1 -rows snapshotter,mount -formats estargz", "-runs 3", "-runs 5"),
		quotes: []string{"first output of numpy: mount, estargz", "first output of numpy: profile, estargz", "first output of numpy: cluster second node, estargz",
			"first output of numpy: mount, gzip", "first output of numpy: cluster second node, gzip"},
	},
	{
		name: "layers", title: "Files of an image that has not arrived, by the format of its layers (`simtest/layers`)",
		needs: []string{"root", "mmdebstrap", "mkfs.erofs", "mksquashfs", "umoci", "chunked", "docker-registry"},
		limit: time.Hour, measure: command("layers", "-runs 1 -entries 10000", "-runs 3", "-runs 5"),
	},
	{
		name: "reads", title: "Files of an image that is here, beside file systems (`simtest/reads`)",
		needs: []string{"root", "mkfs.ext4", "mkfs.erofs"},
		limit: time.Hour, measure: command("reads", "-runs 1 -big 67108864 -small 5000 -cat 2000 -random 5000", "-runs 3", "-runs 5"),
		quotes: []string{"a file of 256 MiB in order, first", "20000 reads of 4 KiB in it, again", "20000 files of 2 KiB, first"},
	},
	{
		name: "large", title: "A large artifact, of which a member of a cluster has another version (`simtest/large`)",
		limit: time.Hour, measure: command("large", "-size 512MiB -rounds 1", "-size 2GiB -rounds 3", "-size 10GiB"),
		quotes: []string{"a new version of a model of 2.0 GiB, of which 5 % are new: moved"},
	},
	{
		name: "packages", title: "Benchmarks of packages, on one CPU",
		limit: time.Hour, measure: benchmarks,
		quotes: []string{"toc/cdc Of"},
	},
}
