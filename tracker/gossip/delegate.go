package gossip

import (
	"log/slog"
	"strings"
)

// delegate is what memberlist asks for this member's metadata, and hands what
// others sent. It does not use the broadcasts and the state that memberlist offers
// to carry: they are for much less than all members' announcements.
type delegate struct{ g *Gossip }

// NodeMeta implements [memberlist.Delegate].
func (d delegate) NodeMeta(int) []byte {
	meta, err := encodeMeta(d.g.roster.whoami())
	if err != nil {
		panic(err) // checked when the member was started, and draining takes no room
	}
	return meta
}

// NotifyMsg implements [memberlist.Delegate].
func (d delegate) NotifyMsg(p []byte) {
	m, err := decode(p)
	if err != nil {
		d.g.cfg.Log.Debug("message dropped", "error", err)
		return
	}
	d.g.roster.receive(m)
}

// GetBroadcasts implements [memberlist.Delegate].
func (delegate) GetBroadcasts(_, _ int) [][]byte { return nil }

// LocalState implements [memberlist.Delegate].
func (delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements [memberlist.Delegate].
func (delegate) MergeRemoteState([]byte, bool) {}

// lines hands what memberlist logs to log. It says nothing of keys.
type lines struct {
	log     *slog.Logger
	witness *witness
}

func (l lines) Write(p []byte) (int, error) {
	_, text, found := strings.Cut(string(p), "memberlist: ")
	if !found {
		text = string(p)
	}
	l.witness.undecrypted(text)
	l.log.Debug("memberlist", "says", strings.TrimSpace(text))
	return len(p), nil
}
