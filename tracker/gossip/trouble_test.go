package gossip

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAnotherSecretIsNoticed by the member that is asked, and by the one that asks.
func TestAnotherSecretIsNoticed(t *testing.T) {
	right := run(t, "right")
	for name, given := range map[string][]string{"another": {"of another cluster"}, "none": nil} {
		wrong := run(t, "wrong", join(right.Addr()), secrets(given...))
		before := right.Trouble().Undecrypted
		eventually(t, "both notice, with "+name, func() bool {
			asked, asks := right.Trouble(), wrong.Trouble()
			return asked.Undecrypted > before && slices.Equal(asked.From, []string{"127.0.0.1"}) &&
				len(asks.Unjoined) == 1 && asks.Unjoined[0].Address == right.Addr()
		})
		if !wrong.View().Alone() {
			t.Errorf("with %s: it is a member", name)
		}
		wrong.crash()
	}
}

func TestNoTroubleAmongMembers(t *testing.T) {
	nodes := cluster(t, 2)
	eventually(t, "both clocks are known", func() bool { return len(nodes[0].Clocks()) == 1 && len(nodes[1].Clocks()) == 1 })
	if ahead := nodes[0].Clocks()[nodes[1].id]; ahead.Abs() > 10*time.Second {
		t.Errorf("a clock of the same machine is ahead by %s", ahead)
	}
	eventually(t, "nobody is missed", func() bool { return len(nodes[1].Trouble().Unjoined) == 0 })
	if tr := nodes[0].Trouble(); tr.Undecrypted > 0 {
		t.Errorf("%+v", tr)
	}
	reach, err := nodes[0].Reach(t.Context(), nodes[1].id)
	if err != nil || reach.TCP != "" || reach.UDP != "" || reach.Address != nodes[1].Addr() {
		t.Errorf("%+v, %v", reach, err)
	}
	nodes[1].crash()
	reach, err = nodes[0].Reach(t.Context(), nodes[1].id)
	if err == nil && (!strings.Contains(reach.TCP, "refused") || reach.UDP == "") {
		t.Errorf("a member that is gone: %+v", reach)
	}
}

func TestOtherMembersClock(t *testing.T) {
	nodes := cluster(t, 2)
	w := nodes[0].witness
	var name string
	for _, m := range nodes[0].roster.current().members {
		name = m.node.Name
	}
	payload := binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(w.AckPayload())+1<<32)
	n := *nodes[1].list.LocalNode()
	if n.Name != name {
		t.Fatalf("%s is not %s", n.Name, name)
	}
	w.NotifyPingComplete(&n, time.Millisecond, payload)
	if ahead := w.clocks[name]; ahead < 4*time.Second || ahead > 6*time.Second {
		t.Errorf("ahead by %s", ahead)
	}
	w.NotifyPingComplete(&n, 0, []byte("older"))
}
