// Package doctor finds out what keeps a node, its cluster and the runtimes before it from
// working, and says of each fault what causes it and what remedies it.
//
// A check looks at one thing and may take its own time; all run side by side. Those that
// need a node's view ask the one that runs (its status, and what it can reach of upstreams
// and members); without one they look at what its settings say.
package doctor

import (
	"context"
	"errors"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// Severity says how bad a finding is.
type Severity string

// Severities, from the best to the worst.
const (
	OK      Severity = "ok"
	Note    Severity = "note"    // worth knowing
	Warning Severity = "warning" // works, but not as it could
	Error   Severity = "error"   // broken
)

var ranks = map[Severity]int{OK: 0, Note: 1, Warning: 2, Error: 3}

// Finding is one thing that was found out.
type Finding struct {
	Check    string   `json:"check"`             // what was looked at
	Subject  string   `json:"subject,omitempty"` // which of them
	Severity Severity `json:"severity"`
	Cause    string   `json:"cause"` // what is so, and why
	Remedy   string   `json:"remedy,omitempty"`
}

// Version is that of the form of [Report] as JSON. Fields are added, and none changes its
// meaning, without another one.
const Version = 1

// Report is all that was found out.
type Report struct {
	Version  int       `json:"version"`
	Node     string    `json:"node,omitempty"` // admin listener of the node that was asked; "" if none answered
	Severity Severity  `json:"severity"`       // the worst
	Findings []Finding `json:"findings"`
	Pull     *Pull     `json:"pull,omitempty"`
}

// Config says what is looked at.
type Config struct {
	// Status and Reach ask the node. An error of Status is that none answers.
	Status func(context.Context) (node.Status, error)
	Reach  func(context.Context) (node.Reach, error)
	// Pull pulls an image through a node. nil pulls nothing.
	Pull func(ctx context.Context, image string) (*Pull, error)
	// Image is what is pulled. Empty is one that the node knows.
	Image string

	URL      string      // of the node that Status asks
	Settings node.Config // of the node, if none answers
	Root     string      // where the machine's file system is; empty is /
	Mirror   string      // the registry face as runtimes reach it; empty is the node's
	Timeout  time.Duration
}

const (
	checkFor  = 20 * time.Second
	statusFor = 5 * time.Second
)

// patient is what one run knows.
type patient struct {
	Config
	status  *node.Status // nil without a node
	reach   node.Reach
	reached error
}

// check is one check: it returns what it finds before its context ends.
type check struct {
	name string
	run  func(context.Context, *patient) []Finding
}

// checks are all but the pull, in the order of the report. They come in two rounds, for
// some need to know what the node can reach.
var checks = []check{
	{"node", checkNode}, {"runtime", checkRuntimes}, {"disk", checkDisk}, {"fuse", checkFUSE}, {"ports", checkPorts}, {"cluster", checkCluster},
	{"parent", checkParents}, {"upstream", checkUpstreams}, {"member", checkMembers}, {"clock", checkClocks},
}

// Run looks at everything, for the configured time at the most.
func Run(ctx context.Context, cfg Config) Report {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	p := &patient{Config: cfg}
	p.ask(ctx)
	r := Report{Version: Version, Severity: OK, Findings: []Finding{}}
	if p.status != nil {
		r.Node = cfg.URL
	}
	found := make([]chan []Finding, len(checks))
	for i, c := range checks {
		found[i] = p.begin(ctx, c)
	}
	pull := make(chan []Finding, 1)
	go func() {
		var findings []Finding
		r.Pull, findings = p.pull(ctx)
		pull <- findings
	}()
	for i := range found {
		r.Findings = append(r.Findings, <-found[i]...)
	}
	r.Findings = append(r.Findings, <-pull...)
	for _, f := range r.Findings {
		if ranks[f.Severity] > ranks[r.Severity] {
			r.Severity = f.Severity
		}
	}
	return r
}

// ask asks the node what it is and what it can reach.
func (p *patient) ask(ctx context.Context) {
	sctx, cancel := context.WithTimeout(ctx, statusFor)
	defer cancel()
	if s, err := p.Status(sctx); err == nil {
		p.status = &s
	}
	rctx, cancel := context.WithTimeout(ctx, checkFor)
	defer cancel()
	if p.status != nil {
		p.reach, p.reached = p.Reach(rctx)
		return
	}
	p.reach.Upstreams, p.reached = node.ReachUpstreams(rctx, p.Settings.DataConfig)
}

// begin runs a check. One that does not end, such as on a file system whose server is
// gone, is left behind.
func (p *patient) begin(ctx context.Context, c check) chan []Finding {
	done, out := make(chan []Finding, 1), make(chan []Finding, 1)
	ctx, cancel := context.WithTimeout(ctx, checkFor)
	go func() { done <- c.run(ctx, p) }()
	go func() {
		defer cancel()
		select {
		case f := <-done:
			out <- named(c.name, f)
		case <-ctx.Done():
			out <- []Finding{{c.name, "", Warning, "this check did not come to an end in time", "look at what it depends on: a file system or a server that does not answer"}}
		}
	}()
	return out
}

// named gives findings the name of their check.
func named(check string, findings []Finding) []Finding {
	for i := range findings {
		findings[i].Check = check
	}
	return findings
}

func checkNode(ctx context.Context, p *patient) []Finding {
	if p.status == nil {
		_, err := p.Status(ctx)
		if err == nil {
			err = errors.New("it did not at first")
		}
		return []Finding{{"", "", Warning, err.Error(), "start granary serve, or name its admin listener with --node"}}
	}
	findings := []Finding{{Severity: OK, Cause: "version " + p.status.Version + " answers at " + p.URL}}
	if p.status.Degraded != "" {
		findings = append(findings, Finding{"", p.status.DataDir, Error, p.status.Degraded, "make the directory one that the node can write to, and restart it"})
	}
	if p.reached != nil {
		findings = append(findings, Finding{"", "", Warning, "it does not say what it can reach: " + p.reached.Error(), "use the same version of granary as the node"})
	}
	return findings
}
