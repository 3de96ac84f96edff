package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/granary-oci/granary/proxy/parent"
)

// checkParents looks at what is made of other sites, after they were asked.
func checkParents(_ context.Context, p *patient) (findings []Finding) {
	if p.status == nil {
		return nil
	}
	all := p.reach.Parents
	if all == nil {
		all = p.status.Parents // of a node that did not say what it reaches
	}
	for _, s := range all {
		findings = append(findings, parentFinding(s, p.status.SiteID))
	}
	return findings
}

func parentFinding(s parent.Status, id string) Finding {
	switch s.State {
	case "up":
		return Finding{"", s.Name, OK, "it answers", ""}
	case "resting":
		return Finding{"", s.Name, Note, "it is not asked now: " + s.Error, "wait, or let it give more: --parent-limit"}
	case "quarantined":
		return Finding{"", s.Name, Warning,
			fmt.Sprintf("it is not asked before %s, for it gave what is wrong: %s", s.Until.UTC().Format(time.RFC3339), s.Error),
			"tell who runs it, or drop it from --parent; what it gave was not served"}
	}
	return Finding{"", s.Name, Error, "it cannot be asked: " + s.Error, parentRemedy(s.Error, id)}
}

// parentRemedy says what helps against an error of asking a parent, which knows this node by an ID, if
// it does by libp2p.
func parentRemedy(err, id string) string {
	admit := "give this node one of the parent's --gateway-token-file as --parent-token-file"
	if id != "" {
		admit = "have the parent run with --child " + id + ", or " + admit
	}
	return remedyOf(err, "see that the parent runs, and that --parent is where it says in its status",
		[2]string{"this site may not ask", admit},
		[2]string{"certificate", "name who has signed the parent's certificate: --parent-ca-file; if it says that it has expired or is not valid yet, check the clock"},
		[2]string{"no such host", "check the name in --parent, and the machine's DNS"},
		[2]string{"peer id mismatch", "another node is at that address: correct the ID in --parent"},
		[2]string{"refused", "start the parent, or correct the port in --parent: that of its --site-listen or --gateway-listen"},
		[2]string{"timeout", "open the firewall to it: UDP for quic-v1, TCP else"},
		[2]string{"deadline exceeded", "open the firewall to it: UDP for quic-v1, TCP else"},
		[2]string{"no route", "check the machine's routes"},
		[2]string{"unreachable", "check the machine's routes"},
	)
}
