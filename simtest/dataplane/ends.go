package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	window   = 32 << 20 // bytes that a reader holds, as a node's does
	requests = 2000     // of 4 KiB
	small    = 4 << 10
)

// writeBlob writes a blob of random bytes, its digest, and a small one.
func writeBlob(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(rand.NewChaCha8([32]byte{1}), size)); err != nil {
		return err
	}
	return os.WriteFile(file+".digest", []byte(digest.NewDigest(digest.SHA256, h)), 0o600)
}

// blobs are the two that are served.
type blobs struct {
	file        *os.File
	large, tiny *chunk.Map
	tinyBytes   []byte
	links       []chunk.Link // of the large one
}

func open(file string) (*blobs, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d, err := os.ReadFile(file + ".digest")
	if err != nil {
		return nil, err
	}
	b := &blobs{file: f, tinyBytes: make([]byte, small)}
	if _, err := f.ReadAt(b.tinyBytes, 0); err != nil {
		return nil, err
	}
	if b.large, err = chunk.Grid(digest.Digest(d), info.Size()); err != nil {
		return nil, err
	}
	if b.tiny, err = chunk.Grid(digest.FromBytes(b.tinyBytes), small); err != nil {
		return nil, err
	}
	return b, b.prove()
}

// prove hashes the blob in order, as a node does that has got it.
func (b *blobs) prove() error {
	prefix := chunk.NewPrefix(b.large.Blob())
	for i := range b.large.Len() {
		p, err := b.Get(context.Background(), b.large.At(i))
		if err != nil {
			return err
		}
		_, _ = prefix.Write(p)
		b.links = append(b.links, prefix.Link())
	}
	return nil
}

// Get implements [chunk.Source].
func (b *blobs) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	if ref.Blob == b.tiny.Blob() {
		return b.tinyBytes, nil
	}
	p := make([]byte, ref.Size)
	_, err := b.file.ReadAt(p, ref.Offset)
	return p, err
}

// backend is a [p2p.Backend] that has the blobs and nothing else.
type backend struct{ *blobs }

func (b backend) Stored(ctx context.Context, _ string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, b.blobs, refs, yield)
}

func (b backend) Relay(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return b.Stored(ctx, host, refs, yield)
}

func (b backend) Fetch(ctx context.Context, _ wire.Repository, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, b.blobs, refs, yield)
}

// Proof implements [p2p.Backend]: the blob was hashed in order once.
func (b backend) Proof(_ string, ref chunk.Ref, _ []byte) p2p.Proof {
	p := p2p.Proof{Proven: true}
	if ref.Blob == b.large.Blob() {
		if i := ref.Index(); i > 0 {
			p.Before = b.links[i-1]
		}
		if !ref.Last() {
			p.After = b.links[ref.Index()]
		}
	}
	return p
}

func (backend) Map(context.Context, wire.MapRequest) wire.Map { return wire.Map{} }
func (backend) Learn(wire.Repository, []byte) error           { return nil }
func (backend) Forget(wire.Forget) error                      { return nil }
func (backend) Cause(error) wire.Cause                        { return wire.CauseFailed }
func (backend) Order(context.Context, wire.Order, []byte) ([]byte, error) {
	return nil, errors.New("nobody commands this node")
}
func (backend) Ask(context.Context, wire.Ask) (a wire.Answer, body []byte, err error) {
	return a, nil, errors.New("nothing is known")
}

type signer struct{ *libp2p.Identity }

func (signer) Verify(id tracker.ID, p, signature []byte) bool { return libp2p.Verify(id, p, signature) }

// member is one end of the cluster's way. Both ends know each other's keys by files
// beside the blob.
func member(file, role string) (*libp2p.Host, *p2p.Client, *tracker.Static, error) {
	ids := make(map[string]*libp2p.Identity)
	for _, r := range []string{"serve", "read"} {
		id, err := libp2p.LoadIdentity(filepath.Join(filepath.Dir(file), r+".key"), chunkstore.WriteDurably)
		if err != nil {
			return nil, nil, nil, err
		}
		ids[r] = id
	}
	self := tracker.Peer{ID: ids[role].ID(), Weight: 1}
	other := tracker.Peer{ID: ids[map[string]string{"serve": "read", "read": "serve"}[role]].ID(), Weight: 1}
	members := tracker.NewStatic(tracker.NewView(self, []tracker.Peer{other}))
	host, err := libp2p.New(libp2p.Config{Identity: ids[role], Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Members: members, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, nil, err
	}
	client := p2p.NewClient(p2p.Config{Transport: host, Members: members, Signer: signer{ids[role]}, Random: rand.New(rand.NewPCG(1, 2))})
	return host, client, members, nil
}

// serve is the end that has the blob: it prints where, and for each line of its input
// what it has spent since the one before.
func serve(way, file string) error {
	b, err := open(file)
	if err != nil {
		return err
	}
	address, err := listen(way, file, b)
	if err != nil {
		return err
	}
	fmt.Println(address)
	before := spent()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); before = spent() {
		if err := json.NewEncoder(os.Stdout).Encode(result{CPU: spent() - before}); err != nil {
			return err
		}
	}
	return nil
}

func listen(way, file string, b *blobs) (string, error) {
	if way == "p2p" {
		host, client, _, err := member(file, "serve")
		if err != nil {
			return "", err
		}
		host.Handle(p2p.NewServer(client, backend{b}, slog.New(slog.DiscardHandler)).Serve)
		return host.Addrs()[0], nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	cert, err := certificate()
	if err != nil {
		return "", err
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(b.file, 0, b.large.Size()))
	})
	go func() {
		_ = http.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}), handler)
	}()
	return "https://" + l.Addr().String(), nil
}

func certificate() (tls.Certificate, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// read is the end that reads the blob, for each line of its input once, and prints
// what that has cost.
func read(way, file, address string) error {
	b, err := open(file)
	if err != nil {
		return err
	}
	src, err := source(way, file, address)
	if err != nil {
		return err
	}
	if _, err := src.Get(context.Background(), b.tiny.At(0)); err != nil { // the connections are made
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		before, begin := spent(), time.Now()
		if err := readAll(b.large, src); err != nil {
			return err
		}
		r := result{Seconds: time.Since(begin).Seconds(), CPU: spent() - before}
		if err := readSmall(b.tiny.At(0), src, &r); err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// readSmall measures requests of a few bytes, one after the other.
func readSmall(ref chunk.Ref, src chunk.Source, r *result) error {
	var took []time.Duration
	for range requests {
		begin := time.Now()
		if _, err := src.Get(context.Background(), ref); err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	r.P50, r.P99 = took[len(took)/2], took[len(took)*99/100]
	return nil
}

// readAll reads a blob as a node does: stripes ahead of a reader that takes them in
// order. Each chunk has been hashed once, by what came with it or by the source.
func readAll(m *chunk.Map, src chunk.Source) error {
	r := chunk.NewBlob(m, src, chunk.BlobConfig{Window: window, Run: chunk.StripeSize}).Open(context.Background())
	defer r.Close()
	for {
		if _, _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func source(way, file, address string) (chunk.Source, error) {
	if way == "https" {
		return &ranges{url: address, client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 4, MaxIdleConnsPerHost: 4, // both ends are this program's
		}}}, nil
	}
	_, client, members, err := member(file, "read")
	if err != nil {
		return nil, err
	}
	view := members.View()
	self := view.Self()
	self.Weight = 0 // all is the other's
	var other tracker.Peer
	for _, p := range view.Peers() {
		if p.ID != self.ID {
			other = p
		}
	}
	other.Addrs = []string{address}
	members.Set(tracker.NewView(self, []tracker.Peer{other}))
	return client.Source(wire.Repository{Host: "registry.test", Name: "app"}, nowhere{}), nil
}

// nowhere is the source of what no member has.
type nowhere struct{}

func (nowhere) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound }

// ranges gets runs of chunks with one range each.
type ranges struct {
	url    string
	client *http.Client
}

func (s *ranges) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error { p = q; return nil })
	return p, err
}

func (s *ranges) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return err
	}
	last := refs[len(refs)-1]
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", refs[0].Offset, last.Offset+last.Size-1))
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for _, ref := range refs {
		p := make([]byte, ref.Size)
		if _, err := io.ReadFull(resp.Body, p); err != nil {
			return err
		}
		sum := sha256.Sum256(p)
		_ = sum // nothing to compare with: HTTPS carries no claims
		if err := yield(ref, p); err != nil {
			return err
		}
	}
	_, err = resp.Body.Read(make([]byte, 1)) // the end, for the connection to be used again
	if err == io.EOF {
		err = nil
	}
	return err
}
