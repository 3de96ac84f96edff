package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

// Config says who a member is, and how it finds the others.
type Config struct {
	// Self is this member. Its ID is needed. Addresses in which the IP is
	// unspecified (/ip4/0.0.0.0/tcp/5052) or missing (/tcp/5052) are completed by
	// others with the one that they gossip with this node at.
	Self tracker.Peer
	// Listen is HOST:PORT, for TCP and UDP. HOST is an IP, or empty for all of
	// IPv4. With port 0 there is one to be had from [Gossip.Addr].
	Listen string
	// Advertise is the IP that others reach this node at. Empty is the one it
	// listens on, or, when that is unspecified, the one it reaches others from.
	Advertise string
	// Join is where members may be found: IPs or names, with or without a port.
	// Without, it is that of Listen. A name stands for all of its addresses.
	Join []string
	// Secrets are shared by all members: the first encrypts, all decrypt. With
	// none, nothing is encrypted and anybody may join.
	Secrets [][]byte
	// Providers is told what others announce to this member. It should remember
	// it for several times [Refresh]. nil forgets it.
	Providers *tracker.Providers
	// Resolve returns the addresses of a name. nil asks [net.DefaultResolver].
	Resolve func(ctx context.Context, host string) ([]string, error)
	// Log is where what an operator should know goes, and at debug level what
	// memberlist says. nil is nowhere.
	Log *slog.Logger
}

// Refresh is how often a member announces all that it holds, more or less.
const Refresh = 5 * time.Minute

// pace is how fast things go.
type pace struct {
	lan        func(*memberlist.Config) // changes what memberlist does, if not nil
	rejoin     time.Duration            // between the first attempts of a node that is alone
	heal       time.Duration            // between attempts to join those who are not members
	flush      time.Duration            // between batches of announcements to one member
	retry      time.Duration            // after one could not be sent
	settle     time.Duration            // from a change of the membership to the announcements it makes necessary
	refresh    time.Duration
	defaultFor time.Duration // of calls that have no deadline
}

var usual = pace{
	rejoin:     time.Second,
	heal:       30 * time.Second,
	flush:      200 * time.Millisecond,
	retry:      2 * time.Second,
	settle:     time.Second,
	refresh:    Refresh,
	defaultFor: 5 * time.Second,
}

// Gossip is a member of a cluster. It implements [tracker.Members], and may be used
// by several goroutines.
type Gossip struct {
	cfg       Config
	pace      pace
	port      int    // the default one
	addr      string // the own, as others have it
	list      *memberlist.Memberlist
	roster    *roster
	announcer *announcer
	witness   *witness

	rotating sync.Mutex          // one rotation at a time
	ring     *memberlist.Keyring // nil without secrets

	leaving sync.Once
	left    error // of the one Leave
}

// Start opens the ports and returns a member that is alone until [Gossip.Run], or
// others, find members. It holds the ports until [Gossip.Leave].
func Start(cfg Config) (*Gossip, error) { return start(cfg, usual) }

func start(cfg Config, pace pace) (*Gossip, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Resolve == nil {
		cfg.Resolve = net.DefaultResolver.LookupHost
	}
	if cfg.Providers == nil {
		cfg.Providers = tracker.NewProviders(1, 0)
	}
	g := &Gossip{cfg: cfg, pace: pace, witness: &witness{clocks: make(map[string]time.Duration)}}
	if err := g.open(); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return g, nil
}

func (g *Gossip) open() error {
	self := g.cfg.Self
	if !validID(self.ID) {
		return fmt.Errorf("%.200q is not a peer ID", self.ID)
	}
	if _, err := encodeMeta(self); err != nil {
		return err
	}
	g.roster = newRoster(uint64(time.Now().UnixNano()), self, g.cfg.Providers, g.cfg.Log)
	lan, err := g.memberlist()
	if err != nil {
		return err
	}
	if g.list, err = memberlist.Create(lan); err != nil {
		return err
	}
	g.port, g.addr = lan.BindPort, g.list.LocalNode().Address()
	g.announcer = newAnnouncer(self.ID, g.cfg.Providers, g.roster.current(), g.send)
	return nil
}

// memberlist returns how memberlist is to run.
func (g *Gossip) memberlist() (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	if err := g.listen(c); err != nil {
		return nil, err
	}
	keys, err := deriveKeys(g.cfg.Secrets)
	if err != nil {
		return nil, err
	}
	if len(keys) > 0 {
		if g.ring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
			return nil, err
		}
		c.Keyring = g.ring
	}
	c.Name = g.roster.name
	c.TCPTimeout = 5 * time.Second // an end of Run waits for it
	c.Delegate = delegate{g}
	c.Events = g.roster
	c.Ping = g.witness
	c.Logger = log.New(lines{g.cfg.Log, g.witness}, "", 0)
	if g.pace.lan != nil {
		g.pace.lan(c)
	}
	return c, nil
}

// listen sets what to listen on, and the address that others are told.
func (g *Gossip) listen(c *memberlist.Config) error {
	host, port, err := net.SplitHostPort(g.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %q: %w", g.cfg.Listen, err)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("listen on %q: %w", g.cfg.Listen, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("listen on %q: %w", g.cfg.Listen, err)
	}
	c.BindAddr, c.BindPort, c.AdvertisePort = ip.String(), int(n), int(n)
	c.AdvertiseAddr = g.cfg.Advertise
	if c.AdvertiseAddr == "" && ip.IsUnspecified() {
		c.AdvertiseAddr = sourceIP(ip).String()
	}
	if a, err := netip.ParseAddr(c.AdvertiseAddr); c.AdvertiseAddr != "" && (err != nil || a.IsUnspecified()) {
		return fmt.Errorf("advertise %q: it is not an IP that others can reach", c.AdvertiseAddr)
	}
	return nil
}

// Addr returns the IP and port that others gossip with this member at.
func (g *Gossip) Addr() string { return g.addr }

// View implements [tracker.Members].
func (g *Gossip) View() *tracker.View { return g.roster.current().view }

// Changed implements [tracker.Members].
func (g *Gossip) Changed() <-chan struct{} { return g.roster.next() }

// Run finds the other members, again whenever they are lost, and tells them what
// this one holds, until ctx ends; it returns nil then, within 5 s, which is what an
// address that does not answer is given.
func (g *Gossip) Run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { g.keepJoining(ctx) })
	both.Go(func() { g.keepAnnouncing(ctx) })
	both.Wait()
	return nil
}

// Announce tells the keepers of a blob that this member holds all of it, and goes on
// telling until [Gossip.Withdraw]. It does not wait for them.
func (g *Gossip) Announce(d digest.Digest) { g.announcer.announce(d) }

// Withdraw tells the keepers of a blob that this member does not hold it any more.
// It does not wait for them.
func (g *Gossip) Withdraw(d digest.Digest) { g.announcer.withdraw(d) }

// Drain makes others know that this member is about to leave, so that it owns
// nothing. It waits until they have been told, at most until ctx ends, or for 5 s if
// that has no deadline.
func (g *Gossip) Drain(ctx context.Context) error {
	g.roster.drain()
	patience, err := g.patience(ctx)
	if err != nil {
		return fmt.Errorf("gossip: drain: %w", err)
	}
	if err := g.list.UpdateNode(patience); err != nil {
		return fmt.Errorf("gossip: drain: %w", err)
	}
	return nil
}

// Leave tells the others that this member leaves and closes its ports. It waits as
// Drain does. Calls after the first return what that did.
func (g *Gossip) Leave(ctx context.Context) error {
	g.leaving.Do(func() {
		patience, err := g.patience(ctx)
		if err == nil {
			err = g.list.Leave(patience)
		}
		if err = errors.Join(err, g.list.Shutdown()); err != nil {
			g.left = fmt.Errorf("gossip: leave: %w", err)
		}
	})
	return g.left
}

// patience returns how long ctx gives, which memberlist takes in place of it.
func (g *Gossip) patience(ctx context.Context) (time.Duration, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return g.pace.defaultFor, nil
	}
	return max(time.Until(deadline), time.Millisecond), nil // 0 would be for ever
}

func (g *Gossip) send(m member, p []byte) error { return g.list.SendReliable(m.node, p) }
