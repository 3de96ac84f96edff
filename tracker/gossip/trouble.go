package gossip

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/granary-oci/granary/tracker"
)

const (
	maxStrangers = 16 // addresses that are remembered of those whose messages make no sense
	maxUnjoined  = 32
)

// Trouble is what may keep this member from others.
type Trouble struct {
	// Undecrypted counts messages that none of the secrets decrypts, and those that are not
	// encrypted though they should be, or the other way round.
	Undecrypted int64     `json:"undecrypted"`
	Last        time.Time `json:"last,omitzero"` // when the latest came
	From        []string  `json:"from,omitempty"`
	// Unjoined are addresses that could not be joined at the last attempt.
	Unjoined []Unjoined `json:"unjoined,omitempty"`
}

// Unjoined is an address, or an entry of Join, that could not be joined.
type Unjoined struct {
	Address string `json:"address,omitempty"`
	Error   string `json:"error"`
}

// witness notes what happens to messages. memberlist tells nobody of those that it
// cannot read, but its log.
type witness struct {
	mu      sync.Mutex
	trouble Trouble
	clocks  map[string]time.Duration // by name in memberlist
}

// undecrypted takes a line of memberlist's log.
func (w *witness) undecrypted(line string) {
	text, from, found := strings.Cut(line, " from=")
	text = strings.ToLower(text)
	if !found || !strings.Contains(text, "decrypt") && !strings.Contains(text, "encryption is ") {
		return
	}
	if host, _, err := net.SplitHostPort(strings.TrimSpace(from)); err == nil {
		from = host
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble.Undecrypted++
	w.trouble.Last = time.Now()
	if len(w.trouble.From) < maxStrangers && !slices.Contains(w.trouble.From, from) {
		w.trouble.From = append(w.trouble.From, from)
	}
}

// joined notes what came of an attempt to join.
func (w *witness) joined(failed []Unjoined) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble.Unjoined = failed[:min(len(failed), maxUnjoined)]
}

// Trouble returns what may keep this member from others.
func (g *Gossip) Trouble() Trouble {
	g.witness.mu.Lock()
	defer g.witness.mu.Unlock()
	t := g.witness.trouble
	t.From, t.Unjoined = slices.Clone(t.From), slices.Clone(t.Unjoined)
	return t
}

// AckPayload implements [memberlist.PingDelegate]: an answer to a ping has the time.
func (w *witness) AckPayload() []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
}

// NotifyPingComplete implements [memberlist.PingDelegate].
func (w *witness) NotifyPingComplete(other *memberlist.Node, rtt time.Duration, payload []byte) {
	if len(payload) != 8 { // of an older version
		return
	}
	at := time.Unix(0, int64(binary.BigEndian.Uint64(payload)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clocks[other.Name] = time.Until(at) + rtt/2
}

// Clocks returns by how much the clocks of other members are ahead of this one's, as
// far as they have answered a ping.
func (g *Gossip) Clocks() map[tracker.ID]time.Duration {
	members := g.roster.current().members
	g.witness.mu.Lock()
	defer g.witness.mu.Unlock()
	clocks, there := make(map[tracker.ID]time.Duration), make(map[string]bool)
	for id, m := range members {
		there[m.node.Name] = true
		if ahead, known := g.witness.clocks[m.node.Name]; known {
			clocks[id] = ahead
		}
	}
	for name := range g.witness.clocks {
		if !there[name] {
			delete(g.witness.clocks, name)
		}
	}
	return clocks
}

// Reach is what a member's gossip port can be reached by. Empty is all right, else it is
// what is wrong.
type Reach struct {
	Address string // HOST:PORT
	TCP     string
	UDP     string
}

// Reach tries the gossip port of a member. It takes a second or two, or until ctx ends.
func (g *Gossip) Reach(ctx context.Context, id tracker.ID) (Reach, error) {
	m, ok := g.roster.current().members[id]
	if !ok {
		return Reach{}, fmt.Errorf("gossip: %s is not a member", id)
	}
	r := Reach{Address: m.node.Address()}
	if conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Address); err != nil {
		r.TCP = err.Error()
	} else {
		conn.Close()
	}
	at := &net.UDPAddr{IP: m.node.Addr, Port: int(m.node.Port)}
	if _, err := g.list.Ping(m.node.Name, at); err != nil {
		if _, err = g.list.Ping(m.node.Name, at); err != nil { // a packet may get lost
			r.UDP = err.Error()
		}
	}
	return r, nil
}
