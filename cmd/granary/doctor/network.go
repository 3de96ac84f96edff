package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// usualStatus is what a registry answers to who has no credentials; 0 is of what is not
// asked by HTTP.
var usualStatus = []int{0, http.StatusOK, http.StatusUnauthorized, http.StatusForbidden}

// checkUpstreams looks at what came of asking the registries.
func checkUpstreams(_ context.Context, p *patient) (findings []Finding) {
	if p.reached != nil && p.status == nil {
		return []Finding{{"", "", Error, "settings: " + p.reached.Error(), "correct the setting: granary serve refuses it too"}}
	}
	works := make(map[string]bool)
	for _, u := range p.reach.Upstreams {
		works[u.Registry] = works[u.Registry] || u.Error == ""
	}
	for _, u := range p.reach.Upstreams {
		subject := u.Registry
		switch {
		case u.Error != "":
			f := Finding{"", subject, Error, fmt.Sprintf("%s cannot be used: %s", u.Place, u.Error), upstreamRemedy(u)}
			if works[u.Registry] {
				f.Severity = Warning
			}
			findings = append(findings, f)
		case !slices.Contains(usualStatus, u.Status):
			findings = append(findings, Finding{"", subject, Warning, fmt.Sprintf("%s answers %d to /v2/, as registries do not", u.Place, u.Status), "check that it is a registry, and the path in --upstream"})
		default:
			findings = append(findings, Finding{"", subject, OK, fmt.Sprintf("%s answers within %s", u.Place, u.Took.Round(time.Millisecond)), ""})
		}
	}
	return findings
}

// remedyOf returns what helps against an error: the remedy of the first sign that is in
// it, of pairs of a sign and a remedy, else the last resort.
func remedyOf(err, lastResort string, pairs ...[2]string) string {
	for _, p := range pairs {
		if strings.Contains(err, p[0]) {
			return p[1]
		}
	}
	return lastResort
}

// upstreamRemedy says what helps against an error.
func upstreamRemedy(u node.UpstreamReach) string {
	return remedyOf(u.Error, "ask who runs the registry, or name another place with --upstream",
		[2]string{"no such host", "check the name, and the machine's DNS"},
		[2]string{"server misbehaving", "check the machine's DNS"},
		[2]string{"refused", "check that the registry runs, and the port in --upstream"},
		[2]string{"timeout", "open the firewall to it, or set HTTPS_PROXY"},
		[2]string{"deadline exceeded", "open the firewall to it, or set HTTPS_PROXY"},
		[2]string{"no route", "check the machine's routes"},
		[2]string{"unreachable", "check the machine's routes"},
		[2]string{"certificate", fmt.Sprintf("give the registry's authority: --upstream-ca-file %s=FILE; if it says that the certificate has expired or is not valid yet, check the clock", u.Registry)},
		[2]string{"HTTP response to HTTPS", fmt.Sprintf("it speaks plain HTTP: --upstream %s=http://…", u.Registry)},
		[2]string{"no such file or directory", "mount the layout there, or correct --upstream"},
	)
}

const (
	skewWarns  = 30 * time.Second
	skewBreaks = 5 * time.Minute // tokens and certificates are not good then
)

// checkClocks compares clocks. A registry may be wrong too, so of several the one
// counts that agrees best.
func checkClocks(_ context.Context, p *patient) (findings []Finding) {
	var best *node.UpstreamReach
	for i, u := range p.reach.Upstreams {
		if u.Ahead != nil && (best == nil || u.Ahead.Abs() < best.Ahead.Abs()) {
			best = &p.reach.Upstreams[i]
		}
	}
	if best != nil {
		f := clockFinding("this machine's clock is", best.Registry, -*best.Ahead)
		if f.Severity == Warning && best.Ahead.Abs() >= skewBreaks {
			f.Severity = Error
		}
		findings = append(findings, f)
	}
	for _, m := range p.reach.Members {
		if m.Ahead != nil {
			findings = append(findings, clockFinding("this machine's clock is", memberName(m), -*m.Ahead))
		}
	}
	if len(findings) == 0 {
		findings = []Finding{{"", "", Note, "nobody has told the time, so the clock is not checked", ""}}
	}
	return findings
}

// clockFinding compares this machine's clock with another's.
func clockFinding(what, other string, ahead time.Duration) Finding {
	if ahead.Abs() < skewWarns {
		return Finding{"", other, OK, "the clocks agree", ""}
	}
	word := "ahead of"
	if ahead < 0 {
		word = "behind"
	}
	return Finding{"", other, Warning, fmt.Sprintf("%s %s %s that of %s: certificates and tokens may be refused, and times in what members know of tags are wrong", what, ahead.Abs().Round(time.Second), word, other), "set the clocks by NTP"}
}

func memberName(m node.MemberReach) string { return cmp.Or(m.Name, string(m.ID)) }

// checkMembers looks at how the other members can be reached.
func checkMembers(_ context.Context, p *patient) (findings []Finding) {
	for _, m := range p.reach.Members {
		fault := func(cause, remedy string) {
			findings = append(findings, Finding{"", memberName(m), Error, cause, remedy})
		}
		before := len(findings)
		if m.P2PError != "" {
			fault(fmt.Sprintf("no chunks can be exchanged with it at TCP %s: %s", m.P2P, m.P2PError), "open the port of its --p2p-listen to this machine; if the address is wrong, set its --advertise")
		}
		if m.Large != "" {
			fault(fmt.Sprintf("small packets reach it at TCP %s and large ones do not: %s", m.P2P, m.Large), "the MTU on the way is smaller than that of the network interface, and nobody says so: make the interface's MTU smaller, or let ICMP type 3 code 4 pass")
		}
		if m.TCPError != "" {
			fault(fmt.Sprintf("its gossip port TCP %s is not to be reached: %s", m.Gossip, m.TCPError), "open the port of its --gossip-listen for TCP")
		}
		if m.UDPError != "" {
			fault(fmt.Sprintf("its gossip port UDP %s does not answer: %s", m.Gossip, m.UDPError), "open the port of --gossip-listen for UDP, both ways")
		}
		if len(findings) == before {
			findings = append(findings, Finding{"", memberName(m), OK, "its ports answer", ""})
		}
	}
	return findings
}

const (
	recently = 10 * time.Minute
	joinFor  = 5 * time.Second
)

// checkCluster looks at whether members find each other, and have one secret.
func checkCluster(ctx context.Context, p *patient) (findings []Finding) {
	if p.status == nil {
		return p.checkJoin(ctx)
	}
	c := p.status.Cluster
	if c == nil {
		return []Finding{{"", "", Note, "the node is alone: it has neither --cluster-secret-file nor --insecure-cluster", ""}}
	}
	if t := c.Trouble; t.Undecrypted > 0 && time.Since(t.Last) < recently {
		findings = append(findings, Finding{"", strings.Join(t.From, " "), Error,
			fmt.Sprintf("%d messages cannot be decrypted, the latest of %s: who sends them has another cluster secret", t.Undecrypted, t.Last.Format(time.RFC3339)),
			"give all members the same --cluster-secret-file; to change it, add the new secret as a second line everywhere first"})
	}
	others := len(c.Members) - 1
	for _, u := range c.Trouble.Unjoined {
		f := Finding{"", u.Address, Error, "it cannot be joined: " + u.Error, joinRemedy(u.Error)}
		if others > 0 {
			f.Severity = Note // a member that is down, or a name with a stale address
		}
		findings = append(findings, f)
	}
	for _, m := range c.Members {
		if m.State == "quarantined" || m.State == "down" {
			findings = append(findings, Finding{"", m.Name, Warning, strings.TrimSuffix(fmt.Sprintf("the member %s is %s: %s", m.ID, m.State, m.Fault), ": "), "see granary peers, and the member's log"})
		}
	}
	switch {
	case others > 0:
		findings = append(findings, Finding{"", "", OK, fmt.Sprintf("%d other members", others), ""})
	case len(c.Trouble.Unjoined) == 0:
		findings = append(findings, Finding{"", "", Warning, "no other member was found", "name others with --join HOST:PORT, or a DNS name that stands for them"})
	}
	return findings
}

// joinRemedy says what helps against an error of joining.
func joinRemedy(err string) string {
	return remedyOf(err, "see that a node runs there, and that the port of --gossip-listen is open, TCP and UDP",
		[2]string{"EOF", "who listens there closes without a word: give it and this node the same --cluster-secret-file, or correct the port in --join"},
		[2]string{"reset by peer", "who listens there closes without a word: give it and this node the same --cluster-secret-file, or correct the port in --join"},
		[2]string{"crypt", "give all members the same --cluster-secret-file"},
		[2]string{"refused", "start the node there, or correct the port in --join: it is that of --gossip-listen"},
		[2]string{"no such host", "correct the name in --join, or the machine's DNS; a headless service has addresses only while pods run"},
		[2]string{"timeout", "open the port of --gossip-listen, TCP and UDP, between the members"},
	)
}

// checkJoin tries the addresses of --join without being a member.
func (p *patient) checkJoin(ctx context.Context) (findings []Finding) {
	ctx, cancel := context.WithTimeout(ctx, joinFor)
	defer cancel()
	if err := p.Settings.CheckSecrets(); err != nil {
		findings = append(findings, Finding{"", p.Settings.ClusterSecretFile, Error, "the cluster's secret cannot be used: " + err.Error(), "make --cluster-secret-file one that the node can read, with a secret of 16 characters or more on each line"})
	}
	_, port, _ := net.SplitHostPort(p.Settings.GossipListen)
	for _, j := range p.Settings.Join {
		address := j
		if _, _, err := net.SplitHostPort(j); err != nil {
			address = net.JoinHostPort(strings.Trim(j, "[]"), cmp.Or(port, "5053"))
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			findings = append(findings, Finding{"", address, Error, "it cannot be joined: " + err.Error(), joinRemedy(err.Error())})
			continue
		}
		conn.Close()
		findings = append(findings, Finding{"", address, OK, "it answers; whether it has the same secret shows when a node runs here", ""})
	}
	return findings
}

// checkPorts tries whether the ports of a node that does not run are free.
func checkPorts(ctx context.Context, p *patient) (findings []Finding) {
	if p.status != nil {
		return nil
	}
	s := p.Settings
	try := func(flag, network, address string) {
		if address == "" {
			return
		}
		var err error
		if network == "udp" {
			var c net.PacketConn
			if c, err = new(net.ListenConfig).ListenPacket(ctx, network, address); err == nil {
				c.Close()
			}
		} else {
			var l net.Listener
			if l, err = new(net.ListenConfig).Listen(ctx, network, address); err == nil {
				l.Close()
			}
		}
		if err != nil {
			findings = append(findings, Finding{"", network + " " + address, Error, "a node could not listen: " + err.Error(), "stop what uses the port, or choose another with --" + flag})
			return
		}
		findings = append(findings, Finding{"", network + " " + address, OK, "it is free", ""})
	}
	for _, l := range s.Listen {
		try("listen", "tcp", l)
	}
	try("admin", "tcp", s.Admin)
	if s.ClusterSecretFile == "" && !s.InsecureCluster {
		return findings
	}
	for _, l := range s.P2PListen {
		try("p2p-listen", "tcp", node.HostPort(l))
	}
	try("gossip-listen", "tcp", s.GossipListen)
	try("gossip-listen", "udp", s.GossipListen)
	return findings
}
