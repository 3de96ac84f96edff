// Package gateway serves chunks over HTTP as IPFS's trustless gateways do (specs.ipfs.tech,
// "Trustless Gateway Specification"): GET and HEAD /ipfs/{cid}?format=raw. An address names nothing
// but bytes, which never change, so any cache may keep the answer, and whoever gets it can tell by the
// address whether it is right. There are raw blocks and nothing else: no CAR, no files, no names. What
// is not in the node's store is not there.
//
// Everybody gets what is public. Who shows one of the node's tokens may name a repository, and bring a
// credential for its registry: that opens what the registry would give to the credential, as at the
// registry face, and no cache may keep it. The registry face itself is here for those with a token too,
// so that all that another node needs of this one is at one address. Of that a cache may keep, for who
// shows the same token and no credential, what is asked for by digest and is public: manifests, the
// maps by which the chunks are found, and how layers are made again of what older ones have.
package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	ipfs "github.com/ipfs/boxo/gateway"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
)

// Headers of requests.
const (
	TokenHeader      = "Granary-Token"
	RepositoryHeader = "Granary-Repository" // HOST/NAME, as at the registry face
)

// Limits of a request.
const (
	maxURI     = 1 << 10          // bytes
	findWithin = 10 * time.Second // which takes long if a registry has to be asked who may read
	sendWithin = time.Minute      // for a chunk to be taken
	bodyWithin = 5 * time.Second  // nothing here has a body
	rawFormat  = "application/vnd.ipld.raw"
	// probe is the CID of nothing, by which clients find out whether this is a gateway (section 4).
	probe = "bafkqaaa"
	// siteCaching is what caches are told of what never changes: it is asked again after ten minutes
	// whether everybody may still have it, and given for a month if nobody answers (RFC 5861).
	siteCaching = "public, max-age=600, stale-if-error=2592000"
	// forGood is what caches are told of chunks for everybody, in boxo's words.
	forGood = "public, max-age=29030400, immutable"
)

// Chunks are those that are on this machine, see [blocks.Source]: for everybody.
type Chunks interface {
	blocks.Source
	// BlockFor returns what caller may read in a repository.
	BlockFor(ctx context.Context, repo ref.Repository, caller access.Caller, d digest.Digest) ([]byte, error)
}

// Config is what a gateway is made of. All fields are required, but the last.
type Config struct {
	Chunks Chunks
	// Registry is the registry face, for those who show a token.
	Registry http.Handler
	// DefaultHost is the registry of repositories that name none.
	DefaultHost string
	// Shown reports whether a token is one that opens more than what is public.
	Shown func(token string) bool
	// Public reports whether everybody may read a blob or manifest, by what is known.
	Public func(d digest.Digest) bool
	// Limit bounds how many requests for chunks are answered at once.
	Limit func(http.Handler) http.Handler
	// Answered is told of each answer about a chunk: its status, how many bytes of chunks went out, and
	// whether it was for everybody. nil ignores them.
	Answered func(status int, n int64, public bool)
}

// New returns the face of a gateway.
func New(cfg Config) (http.Handler, error) {
	if cfg.Answered == nil {
		cfg.Answered = func(int, int64, bool) {}
	}
	store := blocks.Store{Source: asked{cfg.Chunks}}
	all := blockstore.NewIdStore(store) // and the probe, which is in its CID
	backend, err := ipfs.NewBlocksBackend(blockservice.New(all, offline.Exchange(all)))
	if err != nil {
		return nil, err
	}
	// Limits of requests and times are this package's and its user's: boxo answers 429 to overload.
	h := ipfs.NewHandler(ipfs.Config{
		DisableHTMLErrors: true, NoDNSLink: true, MaxRequestDuration: sendWithin, MetricsRegistry: prometheus.NewRegistry(),
	}, present{backend, store})
	return &face{cfg, cfg.Limit(h)}, nil
}

type face struct {
	cfg    Config
	blocks http.Handler
}

// ServeHTTP implements [http.Handler].
func (f *face) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client := http.NewResponseController(w)
	_ = client.SetWriteDeadline(time.Now().Add(sendWithin)) // the registry face sets its own
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // what a client announces and does not send must not hold it
		_ = client.SetReadDeadline(time.Now().Add(bodyWithin))
	}
	tokens := r.Header.Values(TokenHeader)
	shown := len(tokens) == 1 && f.cfg.Shown(tokens[0])
	switch _, chunk := strings.CutPrefix(r.URL.Path, "/ipfs/"); {
	case len(tokens) > 0 && !shown:
		refuse(w, http.StatusForbidden, "the token is none of this node's")
	case chunk:
		f.chunk(w, r, shown)
	case shown && (r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/")):
		f.registry(w, r)
	default:
		refuse(w, http.StatusNotFound, "chunks are at /ipfs/CID?format=raw; a registry is here for those with a token")
	}
}

// registry answers a request for the registry face.
func (f *face) registry(w http.ResponseWriter, r *http.Request) {
	a := &answer{ResponseWriter: w, private: true}
	if d := f.unchanging(r); d != "" {
		a.forSites = func() bool { return f.cfg.Public(d) }
	}
	r.Header.Del(TokenHeader)
	f.cfg.Registry.ServeHTTP(a, r)
}

// unchanging returns the digest of the manifest, or of the blob of which what is found out is asked for, in
// nobody's name by digest, or "". Blobs are not among these: by chunks a cache has them already.
func (f *face) unchanging(r *http.Request) digest.Digest {
	if r.Header.Get("Authorization") != "" {
		return ""
	}
	req, err := ref.ParsePath(r.URL.Path, r.URL.Query()["ns"], f.cfg.DefaultHost)
	if err != nil {
		return ""
	}
	switch req.Kind {
	case ref.Manifest, ref.Map, ref.Recipe, ref.Contents:
		return req.Digest
	}
	return ""
}

// refuse answers with an error, which nobody should keep.
func refuse(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, reason, status)
}

// chunk answers a request for a chunk.
func (f *face) chunk(w http.ResponseWriter, r *http.Request, shown bool) {
	a := &answer{ResponseWriter: w}
	who, err := f.reader(r, shown)
	defer func() { f.cfg.Answered(a.status, a.n, who == nil) }()
	a.private = who != nil
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		w.Header().Set("Connection", "close") // and leave what the client wants to write unread
		refuse(a, http.StatusMethodNotAllowed, "chunks are only read")
		return
	case len(r.RequestURI) > maxURI:
		refuse(a, http.StatusRequestURITooLong, "the URI is too long")
		return
	case err != nil:
		refuse(a, http.StatusBadRequest, err.Error())
		return
	case !wantsRaw(r):
		refuse(a, http.StatusNotAcceptable, "there are raw blocks and nothing else: ask for ?format=raw, or "+rawFormat)
		return
	}
	id := strings.TrimPrefix(r.URL.Path, "/ipfs/")
	c, err := cid.Decode(id)
	if err != nil || c.Version() != 1 {
		refuse(a, http.StatusBadRequest, "not a CID of version 1")
		return
	}
	if _, ok := blocks.Digest(c); !ok && id != probe {
		refuse(a, http.StatusNotFound, "no chunk has a CID of that codec and hash")
		return
	}
	a.etag = `"` + c.String() + `.raw"`
	ctx, cancel := context.WithTimeout(r.Context(), findWithin)
	defer cancel()
	r = r.Clone(context.WithValue(ctx, readerKey{}, who))
	r.URL.RawQuery = "format=raw"
	for _, name := range []string{TokenHeader, RepositoryHeader, "Authorization", "Accept", "Service-Worker"} {
		r.Header.Del(name)
	}
	f.blocks.ServeHTTP(a, r)
}

// wantsRaw reports whether a request is for the raw block. What the query says stands before what the
// header does (section 3).
func wantsRaw(r *http.Request) bool {
	if format := r.URL.Query()["format"]; len(format) > 0 {
		return len(format) == 1 && format[0] == "raw"
	}
	for _, accept := range r.Header.Values("Accept") {
		for one := range strings.SplitSeq(accept, ",") {
			kind, _, _ := strings.Cut(one, ";")
			if strings.TrimSpace(kind) == rawFormat {
				return true
			}
		}
	}
	return false
}

// reader is who asks for what is in a repository.
type reader struct {
	repository ref.Repository
	caller     access.Caller
}

// reader returns who sends a request; nil is everybody.
func (f *face) reader(r *http.Request, shown bool) (*reader, error) {
	names := r.Header.Values(RepositoryHeader)
	if !shown || len(names) == 0 {
		return nil, nil
	}
	if len(names) > 1 {
		return nil, errors.New("more than one " + RepositoryHeader + " field")
	}
	repo, err := ref.ParsePath("/v2/"+names[0]+"/tags/list", nil, f.cfg.DefaultHost)
	if err != nil {
		return nil, err
	}
	caller, err := access.FromHeader(r.Header)
	return &reader{repo.Repository, caller}, err
}

type readerKey struct{}

// asked are the chunks that are for whoever sent a request.
type asked struct{ chunks Chunks }

// Block implements [blocks.Source].
func (a asked) Block(ctx context.Context, d digest.Digest) ([]byte, error) {
	if who, _ := ctx.Value(readerKey{}).(*reader); who != nil {
		return a.chunks.BlockFor(ctx, who.repository, who.caller, d)
	}
	return a.chunks.Block(ctx, d)
}

// BlockSize implements [blocks.Source].
func (a asked) BlockSize(ctx context.Context, d digest.Digest) (int64, error) {
	if who, _ := ctx.Value(readerKey{}).(*reader); who != nil {
		p, err := a.Block(ctx, d)
		return int64(len(p)), err
	}
	return a.chunks.BlockSize(ctx, d)
}

// present is a backend that says of nothing that it has not changed but of what is there.
type present struct {
	*ipfs.BlocksBackend
	store blocks.Store
}

// ResolvePath implements [ipfs.IPFSBackend].
func (b present) ResolvePath(ctx context.Context, p path.ImmutablePath) (ipfs.ContentPathMetadata, error) {
	c := p.RootCid()
	if _, chunk := blocks.Digest(c); chunk {
		if has, err := b.store.Has(ctx, c); err != nil || !has {
			return ipfs.ContentPathMetadata{}, errors.Join(err, format.ErrNotFound{Cid: c})
		}
	}
	return b.BlocksBackend.ResolvePath(ctx, p)
}

// answer counts what goes out, and says which of it may be kept.
type answer struct {
	http.ResponseWriter
	private bool
	// forSites reports whether a cache may keep it all the same, for who shows the same token. nil is no.
	forSites func() bool
	etag     string // of a chunk
	status   int
	n        int64 // bytes of a chunk
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
		if a.etag != "" && status == http.StatusNotModified {
			a.Header().Set("Etag", a.etag)
		}
		switch {
		case a.forSites != nil && (status == http.StatusOK || status == http.StatusNotModified) && a.forSites():
			a.Header().Set("Cache-Control", siteCaching)
			a.Header().Set("Vary", TokenHeader+", Authorization")
		case a.private:
			a.Header().Set("Cache-Control", "private, no-store")
		case status == http.StatusNotModified: // where boxo says nothing (RFC 9110, section 15.4.5)
			a.Header().Set("Cache-Control", forGood)
		case status != http.StatusOK && status != http.StatusPartialContent:
			a.Header().Set("Cache-Control", "no-store")
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (a *answer) Write(p []byte) (int, error) {
	a.begin()
	n, err := a.ResponseWriter.Write(p)
	a.count(int64(n))
	return n, err
}

// ReadFrom implements [io.ReaderFrom], by which files are sent as they are.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	a.begin()
	n, err := io.Copy(a.ResponseWriter, r)
	a.count(n)
	return n, err
}

func (a *answer) begin() {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
}

func (a *answer) count(n int64) {
	if a.status == http.StatusOK || a.status == http.StatusPartialContent {
		a.n += n
	}
}
