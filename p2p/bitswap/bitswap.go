// Package bitswap exchanges chunks with any node that speaks IPFS's bitswap, as Kubo and whatever is
// made with boxo do (specs.ipfs.tech, "Bitswap Protocol"). A chunk is a block: see package blocks.
// Whoever connects gets what its source gives to everybody. What is wanted is asked of peers that
// settings name, many chunks at a time; nobody is looked for.
//
// A lone request takes 20 ms at the least, so nothing that a program waits for comes this way: it is
// for what is brought before somebody asks.
package bitswap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap/client"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/bitswap/server"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	libp2pnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
)

const (
	// maxWants is how many chunks are wanted at a time: more are dropped by the other side.
	maxWants = 1024
	// How long peers have: to be connected to; to send the first chunk that is wanted, and the next one;
	// and all of them, with more for each.
	connectWithin = 5 * time.Second
	firstWithin   = 3 * time.Second
	nextWithin    = 5 * time.Second
	batchWithin   = 10 * time.Second
	perChunk      = 500 * time.Millisecond
	// tryAgain is after how long a peer is dialled again that could not be reached.
	tryAgain = 30 * time.Second

	readWithin   = 5 * time.Second // a chunk that somebody wants
	maxReads     = 8               // at a time
	maxWork      = 8               // answers that are made, and sent, at a time
	maxCID       = 64              // bytes
	maxUnsent    = 4 << 20         // bytes on their way to one peer
	haveOnlyOver = 0               // bytes; above, who asks whether a chunk is here is not sent it
)

// Config is what a [Node] is made of.
type Config struct {
	// Host is the node's end of all connections; it is closed with the Node.
	Host host.Host
	// Peers are asked for chunks.
	Peers []peer.AddrInfo
	// Blocks are for everybody.
	Blocks blocks.Source
	// Exchanged is told of bytes of chunks that came, or were given. nil ignores them.
	Exchanged func(in, out int64)
	Log       *slog.Logger // nil: nothing is logged
}

// Node exchanges chunks from [New] on until it is closed.
type Node struct {
	cfg    Config
	net    network.BitSwapNetwork
	client *client.Client
	server *server.Server

	mu    sync.Mutex
	tried map[peer.ID]time.Time // when peers could not be reached
}

// New returns a node on a host.
func New(cfg Config) *Node {
	if cfg.Exchanged == nil {
		cfg.Exchanged = func(int64, int64) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, store := context.Background(), blocks.Store{Source: given{cfg}} // what is started here ends with Close
	n := &Node{cfg: cfg, net: bsnet.NewFromIpfsHost(cfg.Host), tried: make(map[peer.ID]time.Time)}
	n.server = server.New(ctx, n.net, store,
		server.EngineBlockstoreWorkerCount(maxReads), server.EngineTaskWorkerCount(maxWork), server.TaskWorkerCount(maxWork),
		server.MaxQueuedWantlistEntriesPerPeer(maxWants), server.MaxOutstandingBytesPerPeer(maxUnsent),
		server.MaxCidSize(maxCID), server.WithWantHaveReplaceSize(haveOnlyOver))
	// The client has no need of the store: what is here is not wanted. Nor does the server hear of what
	// the client gets: who it is for is the source's to say.
	n.client = client.New(ctx, n.net, nil, store, client.WithoutDuplicatedBlockStats())
	n.net.Start(n.server, n.client)
	return n
}

// Close ends all exchanges, and the host.
func (n *Node) Close() error {
	n.net.Stop()
	err := n.client.Close()
	n.server.Close()
	return errors.Join(err, n.cfg.Host.Close())
}

// Addrs returns where others reach the node, as they name it.
func (n *Node) Addrs() (all []string) {
	for _, a := range n.cfg.Host.Network().ListenAddresses() {
		if !strings.HasPrefix(a.String(), "/p2p-circuit") { // which is where nobody is dialled
			all = append(all, fmt.Sprintf("%s/p2p/%s", a, n.cfg.Host.ID()))
		}
	}
	return all
}

// ParsePeers reads peers as settings name them: MULTIADDR/p2p/ID.
func ParsePeers(texts []string) (all []peer.AddrInfo, err error) {
	for _, text := range texts {
		p, err := peer.AddrInfoFromString(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		if len(p.Addrs) == 0 {
			return nil, fmt.Errorf("%s: there is no address before /p2p/", text)
		}
		all = append(all, *p)
	}
	return all, nil
}

// Fetch yields those of the chunks that peers send, as they come; what has not come after a time that
// depends on how many there are, does not. Each has its digest: boxo names a block by its bytes. The
// error is that of ctx, or of yield. It is for one goroutine's yield at a time.
func (n *Node) Fetch(ctx context.Context, want []digest.Digest, yield func(digest.Digest, []byte) error) error {
	for batch := range slices.Chunk(want, maxWants) {
		if !n.connect(ctx) {
			return ctx.Err()
		}
		if err := n.batch(ctx, batch, yield); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) batch(ctx context.Context, want []digest.Digest, yield func(digest.Digest, []byte) error) error {
	var keys []cid.Cid
	for _, d := range want {
		c, err := blocks.CID(d)
		if err != nil {
			return err
		}
		keys = append(keys, c)
	}
	within, cancel := context.WithTimeout(ctx, batchWithin+time.Duration(len(want))*perChunk)
	defer cancel()
	silence := time.AfterFunc(firstWithin, cancel)
	defer silence.Stop()
	came, err := n.client.NewSession(within).GetBlocks(within, keys)
	if err != nil {
		return ctx.Err() // of within, or the node is being closed
	}
	for b := range came {
		silence.Reset(nextWithin)
		d, ok := blocks.Digest(b.Cid())
		if !ok {
			continue
		}
		n.cfg.Exchanged(int64(len(b.RawData())), 0)
		if err := yield(d, b.RawData()); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// connect connects to peers, and reports whether there is one.
func (n *Node) connect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	var all sync.WaitGroup
	for _, p := range n.cfg.Peers {
		if n.connected(p.ID) || !n.due(p.ID) {
			continue
		}
		all.Go(func() {
			if err := n.cfg.Host.Connect(ctx, p); err != nil {
				n.cfg.Log.Warn("bitswap peer cannot be reached", "peer", p.ID, "error", err)
				n.failed(p.ID)
			}
		})
	}
	all.Wait()
	return slices.ContainsFunc(n.cfg.Peers, func(p peer.AddrInfo) bool { return n.connected(p.ID) })
}

func (n *Node) connected(id peer.ID) bool {
	return n.cfg.Host.Network().Connectedness(id) == libp2pnet.Connected
}

// due reports whether a peer may be dialled again.
func (n *Node) due(id peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.tried[id]) > tryAgain
}

func (n *Node) failed(id peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tried[id] = time.Now()
}

// given are blocks that are counted, and looked for no longer than a peer may be kept waiting.
type given struct{ cfg Config }

// Block implements [blocks.Source].
func (g given) Block(ctx context.Context, d digest.Digest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	p, err := g.cfg.Blocks.Block(ctx, d)
	g.cfg.Exchanged(0, int64(len(p)))
	return p, err
}

// BlockSize implements [blocks.Source].
func (g given) BlockSize(ctx context.Context, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	return g.cfg.Blocks.BlockSize(ctx, d)
}
