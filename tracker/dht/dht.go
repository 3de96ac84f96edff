package dht

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	kad "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

// Mode is whether other sites ask this one.
type Mode int

const (
	// Auto asks, and is asked unless the host has found that it cannot be dialled.
	Auto Mode = iota
	// Client asks only.
	Client
	// Server asks and is asked: for a site that others can dial.
	Server
)

// ErrAlone is the error of a site that knows no other one to ask.
var ErrAlone = errors.New("no other site is known")

const (
	nearest = 8 // sites that are asked for a digest
	copies  = 4 // of these that are told who has it

	defaultRecords = 200_000
	defaultTTL     = 24 * time.Hour
	defaultRate    = 50
	findTime       = 10 * time.Second
	idleRefresh    = 30 * time.Minute // of the routing table
	maxFound       = 256              // providers that are looked at to return fewer
)

// Config is what a [Tracker] needs.
type Config struct {
	// Network is which sites are found: those of the same name, 1 to 64 letters, digits,
	// dots, dashes and underscores.
	Network string
	// Bootstrap are sites that are dialled while no other one is known. The first
	// site has none.
	Bootstrap []peer.AddrInfo
	Mode      Mode
	// MaxRecords is how many records are kept for others, of 500 bytes; 0: 200,000.
	MaxRecords int
	// TTL is how long the records of others last. This site's own are told again after a
	// third of it, so it is the same for all sites of a network; 0: 24 h.
	TTL time.Duration
	// Rate is how many messages a second announcements take, of about 200 bytes; 0: 50.
	Rate float64
	// Loopback lets addresses of this machine count, for sites that are all on it.
	Loopback bool
	Now      func() time.Time // nil: the time
	Log      *slog.Logger     // nil: nothing is logged
}

// Tracker is a site's part in the DHT. It implements [tracker.Tracker].
type Tracker struct {
	host      host.Host
	dht       *kad.IpfsDHT
	loopback  bool
	announcer *announcer
	kept      *records
	prefix    protocol.ID

	cancel context.CancelFunc // of the announcer
	tasks  sync.WaitGroup
}

var networkName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// New returns a tracker that takes part until ctx ends or it is closed. The host
// stays the caller's.
func New(ctx context.Context, h host.Host, cfg Config) (*Tracker, error) {
	return start(ctx, h, cfg, usual, nil)
}

// start is New with other times, and a hook for each message that arrives.
func start(ctx context.Context, h host.Host, cfg Config, p pace, received func(*pb.Message)) (*Tracker, error) {
	if !networkName.MatchString(cfg.Network) {
		return nil, fmt.Errorf("network %q is not 1 to 64 letters, digits, dots, dashes and underscores", cfg.Network)
	}
	cfg.MaxRecords = cmp.Or(cfg.MaxRecords, defaultRecords)
	cfg.TTL = cmp.Or(cfg.TTL, defaultTTL)
	cfg.Rate = cmp.Or(cfg.Rate, defaultRate)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &Tracker{host: h, loopback: cfg.Loopback, prefix: protocol.ID("/granary/" + cfg.Network), cancel: cancel}
	t.announcer = newAnnouncer(t, cfg, p) // before the DHT, which answers others from the beginning
	t.kept = newRecords(cfg.MaxRecords, cfg.TTL, cfg.Now, t.own)
	var err error
	if t.dht, err = kad.New(ctx, newDoor(h), t.options(cfg, received)...); err != nil {
		cancel()
		return nil, err
	}
	if err := t.run(ctx); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Tracker) options(cfg Config, received func(*pb.Message)) []kad.Option {
	options := []kad.Option{
		kad.ProtocolPrefix(t.prefix),
		kad.Mode(map[Mode]kad.ModeOpt{Auto: kad.ModeAutoServer, Client: kad.ModeClient, Server: kad.ModeServer}[cfg.Mode]),
		kad.DisableValues(),
		kad.ProviderStore(t.kept),
		kad.BucketSize(nearest),
		kad.Resiliency(copies),
		kad.BootstrapPeers(cfg.Bootstrap...),
		kad.RoutingTableRefreshPeriod(idleRefresh),
		kad.AddressFilter(t.taken),
	}
	if received != nil {
		options = append(options, kad.OnRequestHook(func(_ context.Context, _ network.Stream, m *pb.Message) { received(m) }))
	}
	return options
}

// run starts what goes on until ctx ends.
func (t *Tracker) run(ctx context.Context) error {
	moved, err := t.host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return err
	}
	t.tasks.Go(func() { t.announcer.run(ctx) })
	t.tasks.Go(func() {
		defer moved.Close()
		for {
			select {
			case <-moved.Out():
				t.announcer.moved()
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}

// Announce implements [tracker.Tracker]. Whether others may know that this site has
// the blob is for the caller to decide.
func (t *Tracker) Announce(d digest.Digest) { t.announcer.announce(d) }

// Withdraw implements [tracker.Tracker].
func (t *Tracker) Withdraw(d digest.Digest) { t.announcer.withdraw(d) }

// Providers implements [tracker.Tracker]. It takes 10 s at most. All that have the
// blob are asked for that can be found among the 8 sites that are nearest to its digest.
func (t *Tracker) Providers(ctx context.Context, d digest.Digest, n int) ([]tracker.Peer, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("providers of %s: %w", d, err)
	}
	key, ok := keyOf(d)
	if !ok || n <= 0 {
		return nil, nil
	}
	finding, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	found := make(map[peer.ID][]ma.Multiaddr)
	for p := range t.dht.FindProvidersAsync(finding, cidOf(key), maxFound) {
		if addrs := t.sound(p.Addrs); p.ID != t.host.ID() && len(addrs) > 0 {
			found[p.ID] = addrs
		}
		if len(found) == n {
			break
		}
	}
	var err error
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("providers of %s: %w", d, ctx.Err())
	case len(found) == 0 && t.dht.RoutingTable().Size() == 0:
		err = fmt.Errorf("providers of %s: %w", d, ErrAlone)
	}
	return peersOf(found), err
}

func peersOf(found map[peer.ID][]ma.Multiaddr) (peers []tracker.Peer) {
	for id, addrs := range found {
		p := tracker.Peer{ID: tracker.ID(id.String())}
		for _, a := range addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
		peers = append(peers, p)
	}
	return peers
}

// Leave tells those that were told something that this site has nothing any more, and
// closes the tracker. For a site that only restarts, Close is enough: it will announce
// the same again.
func (t *Tracker) Leave(ctx context.Context) error {
	t.cancel()
	t.tasks.Wait()
	err := t.announcer.leave(ctx)
	return errors.Join(err, t.Close())
}

// Close ends the tracker's part. What it has announced stays known until it ends.
func (t *Tracker) Close() error {
	t.cancel()
	t.tasks.Wait()
	err := t.dht.Close()
	t.host.RemoveStreamHandler(t.prefix + "/kad/1.0.0") // which kad-dht leaves
	return err
}

// own returns this site as a provider of what it has.
func (t *Tracker) own(d digest.Digest) (peer.AddrInfo, bool) {
	return peer.AddrInfo{ID: t.host.ID(), Addrs: t.sound(t.host.Addrs())}, t.announcer.holds(d)
}

// taken returns what is taken of the addresses that others send.
func (t *Tracker) taken(addrs []ma.Multiaddr) []ma.Multiaddr {
	if takesBack(addrs) {
		return addrs
	}
	return t.sound(addrs)
}

func (t *Tracker) sound(addrs []ma.Multiaddr) []ma.Multiaddr { return sound(addrs, t.loopback) }
