package node

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// Config holds the settings of a node. The tags name its flags, environment
// variables and keys of the configuration file, which are the same.
type Config struct {
	DataConfig        `embed:""`
	ListenConfig      `embed:""`
	GatewayConfig     `embed:""`
	BitswapConfig     `embed:""`
	ClusterConfig     `embed:""`
	SiteConfig        `embed:""`
	WANConfig         `embed:""`
	SnapshotterConfig `embed:""`
	KeepConfig        `embed:""`

	// Now is the clock on the wall, by which is dated what outlives a process: grants, tags and what crossed the links. nil
	// is [time.Now]. Timeouts and pauses run by the system's.
	Now func() time.Time `kong:"-" json:"-"`
}

// DataConfig says what a node keeps, and where it gets it from.
type DataConfig struct {
	DataDir     string   `name:"data-dir" default:"${data_dir}" placeholder:"DIR" help:"Where chunks are kept. Only one node uses a directory at a time."`
	CacheSize   Size     `name:"cache-size" default:"0" placeholder:"SIZE" help:"How many bytes of chunks to keep, as in 50GiB. 0 is the smaller of 50 GiB and 20 % of the file system."`
	VerifyReads string   `name:"verify-reads" default:"first" enum:"first,always" placeholder:"WHEN" help:"Hash a chunk that is read from disk the first time (first) or every time (always)."`
	ContentDir  []string `name:"content-dir" placeholder:"DIR" help:"Directory in which others keep blobs, as blobs/sha256/HEX, such as containerd's content store, /var/lib/containerd/io.containerd.content.v1.content: what is there is served and lent from there, once it has been checked, and not stored again. It is only read. May be repeated."`

	LayerIndex string `name:"layer-index" default:"demand" enum:"demand,complete" placeholder:"WHEN" help:"When to index a gzip layer, for its files to be read one by one: when that is asked for (demand), or as soon as all of the layer is there (complete), which takes 5 to 10 seconds of CPU time for each GB."`

	Upstream           map[string]string `name:"upstream" mapsep:";" placeholder:"HOST=URL,URL" help:"Where the registry HOST is reached, in order of preference, as in docker.io=https://mirror.example,https://registry-1.docker.io. oci:DIR is an image layout in a directory, oci-archive:FILE one in a tar file, docker-archive:FILE what docker save has written, and oci+https://… one on a web server: what these have is public, and what they lack is asked of the next. May be repeated. Default: https://HOST. Only what is named here may have an address that is not public."`
	UpstreamCAFile     map[string]string `name:"upstream-ca-file" mapsep:"," placeholder:"HOST=FILE" help:"PEM certificates that HOST is trusted by, instead of the system's. May be repeated."`
	UpstreamSkipVerify []string          `name:"upstream-skip-verify" placeholder:"HOST" help:"Do not verify the TLS certificate of HOST. May be repeated."`
	DefaultUpstream    string            `name:"default-upstream" default:"docker.io" placeholder:"HOST" help:"Registry of requests that name none."`
	Registries         []string          `name:"registries" placeholder:"PATTERN" help:"Registries that are served: * stands for any characters, and !PATTERN refuses. May be repeated. Default: all."`

	Parent          []string `name:"parent" placeholder:"ADDR" help:"Granary of another site, which is asked before registries: https://HOST:PORT, or a multiaddr as its status tells it, /ip4/192.0.2.1/udp/5054/quic-v1/p2p/ID. May be repeated, in order of preference."`
	ParentTokenFile string   `name:"parent-token-file" placeholder:"FILE" help:"Token that parents know this site by; of several lines the first."`
	ParentCAFile    string   `name:"parent-ca-file" placeholder:"FILE" help:"PEM certificates that parents are trusted by, instead of the system's."`
	ParentLimit     []string `name:"parent-limit" placeholder:"LIMIT" help:"How much comes from parents, as [PARENT=]SIZE/s, SIZE/hour or SIZE/day, with @HH:MM-HH:MM at these hours of the node's clock alone: 5MiB/s@08:00-18:00, or hub.example:5054=2GiB/day. What is used up is asked of the next parent, or of the registry; 0/s is not at all. Without PARENT it is for each. May be repeated."`
	ParentsOnly     bool     `name:"parents-only" help:"Ask no registry, but parents alone: for a site that reaches nothing else."`

	TagPolicy []string      `name:"tag-policy" placeholder:"PATTERN=POLICY" help:"When to ask the upstream about tags, as in docker.io/library/*=ttl=10m: revalidate (each time, the default), ttl=DURATION or pin. The first pattern of HOST/NAME[:TAG] that matches holds. May be repeated."`
	MaxStale  time.Duration `name:"max-stale" default:"168h" placeholder:"DURATION" help:"How long after its last word an upstream that cannot be reached is taken at it, for tags and for what is public."`
	PublicFor time.Duration `name:"public-for" default:"10m" placeholder:"DURATION" help:"How long a repository that is served to everybody is taken to be public without asking again."`
	GrantFor  time.Duration `name:"grant-for" default:"5m" placeholder:"DURATION" help:"The same for a client's credentials."`

	NodeCredentials map[string]string `name:"node-credentials" mapsep:"," placeholder:"HOST=POLICY" help:"Whether the node's own credentials for a registry are for everybody who asks it: off (the default) or share. HOST may have * in it. May be repeated."`
	DockerConfig    string            `name:"docker-config" placeholder:"FILE" help:"Docker's config.json, with the node's own credentials. Default: that of the user."`
}

// ListenConfig says where a node is reached.
type ListenConfig struct {
	Listen      []string `name:"listen" default:"127.0.0.1:5050" placeholder:"HOST:PORT" help:"Address of the registry that runtimes pull from. May be repeated."`
	Admin       string   `name:"admin" default:"127.0.0.1:5051" placeholder:"HOST:PORT" help:"Address of the dashboard, metrics, health, status and profiles, and of all that commands the node; empty for none."`
	TLSCertFile string   `name:"tls-cert-file" placeholder:"FILE" help:"PEM certificate to serve HTTPS with, at the registry face and the gateway; read again when it changes. The admin listener has it too if it asks for a token or certificate."`
	TLSKeyFile  string   `name:"tls-key-file" placeholder:"FILE" help:"PEM key of that certificate."`

	AdminTokenFile    string `name:"admin-token-file" placeholder:"FILE" help:"Tokens, one a line, of at least 16 characters: whoever asks the admin listener has to send one, as Authorization: Bearer TOKEN. Read again when it changes."`
	AdminClientCAFile string `name:"admin-client-ca-file" placeholder:"FILE" help:"PEM certificates: whoever asks the admin listener has to have a certificate that one of them has signed, or a token. Takes --tls-cert-file and --tls-key-file."`
	AdminOpen         string `name:"admin-open" default:"probes" enum:"probes,metrics,all" placeholder:"WHAT" help:"What the admin listener tells those who have shown neither: /healthz and /readyz (probes), also /metrics (metrics), or anything, and does what they say (all). Who connects from this machine need not show anything if there is nothing to be shown."`

	MaxRequests          int `name:"max-requests" default:"4096" placeholder:"N" help:"Requests that are answered at once; more wait, and then get 503."`
	MaxRequestsPerClient int `name:"max-requests-per-client" default:"2048" placeholder:"N" help:"The same for one client address."`

	DrainTimeout time.Duration `name:"drain-timeout" default:"30s" placeholder:"DURATION" help:"How long responses that are under way may take after SIGTERM."`
}

// ClusterConfig says which cluster a node is a member of. Without a secret and
// without InsecureCluster it is alone, and opens no port for members.
type ClusterConfig struct {
	P2PListen    []string `name:"p2p-listen" default:"/ip4/0.0.0.0/tcp/5052" placeholder:"MULTIADDR" help:"Address at which members exchange chunks. May be repeated."`
	GossipListen string   `name:"gossip-listen" default:"0.0.0.0:5053" placeholder:"HOST:PORT" help:"Address at which members find each other, TCP and UDP."`
	Join         []string `name:"join" placeholder:"HOST:PORT" help:"Where other members may be found. A name stands for all of its addresses. May be repeated."`
	Advertise    string   `name:"advertise" placeholder:"IP" help:"Address at which other members reach this node. Default: the one it reaches them from."`

	ClusterSecretFile string `name:"cluster-secret-file" placeholder:"FILE" help:"The cluster's secrets, one a line: the first encrypts, all decrypt. Read again when it changes."`
	InsecureCluster   bool   `name:"insecure-cluster" help:"Be a member of a cluster that has no secret, and that anybody may join."`
	Zone              string `name:"zone" placeholder:"NAME" help:"Where this node is. Blobs cross from one zone to another once."`
	Weight            int    `name:"weight" default:"10" placeholder:"N" help:"How much this node gets for others, 0 to 100, relative to their weights."`

	UnprovenRanges string `name:"unproven-ranges" default:"members" enum:"members,upstream" placeholder:"SOURCE" help:"What parts of a blob that has not been checked as a whole rest on: what members have fetched and signed for (members), or only what this node has fetched itself (upstream)."`

	UploadLimit   Size `name:"upload-limit" default:"0" placeholder:"SIZE" help:"Bytes per second that go to members, as in 50MiB. 0 is no limit."`
	DownloadLimit Size `name:"download-limit" default:"0" placeholder:"SIZE" help:"Bytes per second that come from members. 0 is no limit."`
	UpstreamLimit Size `name:"upstream-limit" default:"0" placeholder:"SIZE" help:"Bytes per second that come from registries and web servers. 0 is no limit."`
}

// KeepConfig says what stays of what passes through a node.
type KeepConfig struct {
	Keep string `name:"keep" default:"all" enum:"all,shared,none" placeholder:"WHAT" help:"What stays in the store of the blobs that are pulled through the node: all of them, the parts that this node answers for in its cluster (shared), or none. Manifests stay, and what is imported, mounted, or pulled before."`
}

// What of a pulled blob is kept.
const (
	keepShared = "shared"
	keepNone   = "none"
)

// SnapshotterConfig says whether containerd's snapshots are made here.
type SnapshotterConfig struct {
	SnapshotterListen string `name:"snapshotter-listen" placeholder:"unix://PATH" help:"Socket at which containerd's remote snapshotter is, as in unix:///run/granary/snapshotter.sock: containers start from mounts of their images, before these have arrived. Takes root. Default: none."`

	// Mounter are the arguments with which this program keeps mounts for a node.
	Mounter []string `kong:"-"`
}

// SettingError says that the value of a setting cannot be used.
type SettingError struct {
	Name string // of the flag
	Err  error
}

func (e *SettingError) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *SettingError) Unwrap() error { return e.Err }

// check returns a *SettingError for what is wrong with the settings.
func (c Config) check() error {
	if err := c.ClusterConfig.check(); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		n    int64
	}{
		{"max-stale", int64(c.MaxStale)}, {"public-for", int64(c.PublicFor)}, {"grant-for", int64(c.GrantFor)}, {"drain-timeout", int64(c.DrainTimeout)},
		{"max-requests", int64(c.MaxRequests)}, {"max-requests-per-client", int64(c.MaxRequestsPerClient)},
	} {
		if s.n < 0 {
			return &SettingError{s.name, errors.New("it is negative")}
		}
	}
	return nil
}

// Size is a number of bytes, written as in 512MiB or 50GB.
type Size int64

var _ encoding.TextUnmarshaler = (*Size)(nil)

// UnmarshalText reads a size with an optional unit: kB, MB, … or KiB, MiB, …
func (s *Size) UnmarshalText(p []byte) error {
	n, err := humanize.ParseBytes(string(p))
	if err != nil || n > 1<<60 {
		return fmt.Errorf("%q is not a size such as 512MiB or 50GiB", p)
	}
	*s = Size(n)
	return nil
}

// String returns the size with a binary unit, exact if it is a multiple of one.
func (s Size) String() string {
	for _, u := range []struct {
		n    Size
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if s >= u.n && s%u.n == 0 {
			return strconv.FormatInt(int64(s/u.n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// DefaultDataDir returns where a node of this user keeps its chunks:
// /var/lib/granary for root, else the user's cache directory.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/granary"
	}
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		return filepath.Join(os.TempDir(), "granary-"+strconv.Itoa(os.Geteuid()))
	}
	return filepath.Join(cache, "granary")
}

// defaultCacheSize is the smaller of 50 GiB and a fifth of the file system that
// dir is on.
func defaultCacheSize(dir string) int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 50 << 30
	}
	return min(50<<30, int64(fs.Blocks)*fs.Bsize/5)
}
