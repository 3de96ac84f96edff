package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy"
)

// nodeFlag is how commands find a running node.
type nodeFlag struct {
	Node          string `name:"node" default:"http://127.0.0.1:5051" placeholder:"URL" help:"Admin listener of the node."`
	NodeTokenFile string `name:"node-token-file" placeholder:"FILE" help:"Token that the node's --admin-token-file has; of several lines the first."`
	NodeCAFile    string `name:"node-ca-file" placeholder:"FILE" help:"PEM certificates that the node is trusted by, instead of the system's."`
	NodeCertFile  string `name:"node-cert-file" placeholder:"FILE" help:"PEM certificate to show to the node, for its --admin-client-ca-file; --node-key-file has its key."`
	NodeKeyFile   string `name:"node-key-file" placeholder:"FILE" help:"PEM key of that certificate."`
}

// maxAnswer bounds what a node may answer, in bytes.
const maxAnswer = 16 << 20

// status asks the node for its status.
func (f nodeFlag) status(ctx context.Context) (node.Status, error) {
	var s node.Status
	body, err := f.do(ctx, http.MethodGet, "/api/v1/status")
	if err != nil {
		return s, err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&s); err != nil {
		return s, fmt.Errorf("node %s: status: %w", f.Node, err)
	}
	return s, nil
}

func (f nodeFlag) do(ctx context.Context, method, path string) (io.ReadCloser, error) {
	return f.send(ctx, method, path, nil, 0)
}

// send does it with a body of a size, nil for none.
func (f nodeFlag) send(ctx context.Context, method, path string, body io.Reader, size int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(f.Node, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("--node: %w", err)
	}
	req.ContentLength = size
	direct, err := f.client(req.Header)
	if err != nil {
		return nil, err
	}
	resp, err := direct.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no node answers at %s (is 'granary serve' running, and is --node its --admin address?): %w", f.Node, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, &nodeError{f.Node, resp.StatusCode, strings.TrimSpace(string(why))}
	}
	return resp.Body, nil
}

// client returns what asks the node, and sets what shows that it may.
func (f nodeFlag) client(h http.Header) (*http.Client, error) {
	t := &http.Transport{Proxy: nil, DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if f.NodeTokenFile != "" {
		p, err := os.ReadFile(f.NodeTokenFile)
		if err != nil {
			return nil, fmt.Errorf("--node-token-file: %w", err)
		}
		for line := range bytes.Lines(p) {
			if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
				h.Set("Authorization", "Bearer "+string(line))
				break
			}
		}
	}
	if f.NodeCAFile != "" {
		pem, err := os.ReadFile(f.NodeCAFile)
		if err != nil {
			return nil, fmt.Errorf("--node-ca-file: %w", err)
		}
		if t.TLSClientConfig.RootCAs = x509.NewCertPool(); !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--node-ca-file: %s holds no PEM certificate", f.NodeCAFile)
		}
	}
	if f.NodeCertFile != "" || f.NodeKeyFile != "" {
		pair, err := tls.LoadX509KeyPair(f.NodeCertFile, f.NodeKeyFile)
		if err != nil {
			return nil, fmt.Errorf("--node-cert-file: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	// A token is for this node alone, wherever it might lead.
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// nodeError is an answer of a node other than success.
type nodeError struct {
	node   string
	status int
	why    string
}

func (e *nodeError) Error() string {
	return fmt.Sprintf("node %s: %d %s: %s", e.node, e.status, http.StatusText(e.status), e.why)
}

// ask makes a request that is answered with JSON.
func (f nodeFlag) ask(ctx context.Context, path string, answer any) error {
	body, err := f.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("node %s: %w", f.Node, err)
	}
	return nil
}

// statusCmd shows what a node says of itself.
type statusCmd struct {
	nodeFlag `embed:""`
	JSON     bool `name:"json" help:"Print JSON."`
}

func (c *statusCmd) Run(e *env) error {
	ctx, cancel := context.WithTimeout(e.ctx, 30*time.Second)
	defer cancel()
	s, err := c.status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		return out.Encode(s)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "version\t%s\n", s.Version)
	fmt.Fprintf(w, "up\t%s\n", time.Since(s.Started).Round(time.Second))
	fmt.Fprintf(w, "registry\t%s\n", strings.Join(s.Listen, " "))
	fmt.Fprintf(w, "store\t%s of %s in %d blobs, %s\n", bytesText(s.Store.Bytes), bytesText(s.Store.Budget), s.Store.Blobs, s.DataDir)
	if s.Store.Shared > 0 {
		fmt.Fprintf(w, "shared\t%s more, which are on disk once for several blobs\n", bytesText(s.Store.Shared))
	}
	fmt.Fprintf(w, "contents of files\t%s in %d\n", bytesText(s.Contents.Bytes), s.Contents.Blobs)
	if s.Degraded != "" {
		fmt.Fprintf(w, "degraded\t%s\n", s.Degraded)
	}
	for _, source := range slices.Sorted(maps.Keys(s.Served)) {
		fmt.Fprintf(w, "served from %s\t%s\n", source, bytesText(s.Served[source]))
	}
	fmt.Fprintf(w, "received from upstream\t%s\n", bytesText(s.Received))
	fmt.Fprintf(w, "saved the registries\t%s, %d requests, %d pulls of Docker Hub's limit, by %s\n", bytesText(s.Savings.Bytes), s.Savings.Requests, s.Savings.Pulls, plural(s.Savings.Members, "node"))
	if c := s.Cluster; c != nil {
		fmt.Fprintf(w, "received from members\t%s\n", bytesText(c.Received))
		fmt.Fprintf(w, "sent to members\t%s\n", bytesText(c.Sent))
		fmt.Fprintf(w, "cluster\t%d members; this is %s, gossip at %s\n", len(c.Members), c.ID, c.Gossip)
	}
	fmt.Fprintf(w, "upstreams\t%s\n", strings.Join(s.Upstreams, " "))
	printSites(w, s)
	for _, i := range s.UnderWay {
		fmt.Fprintf(w, "under way\t%s: %s of %s\n", printable(i.Ref), bytesText(i.Here), bytesText(i.Size))
	}
	for _, p := range s.Preheats {
		fmt.Fprintf(w, "preheat %s\t%s\n", p.ID, preheatText(p))
	}
	for _, m := range s.Mounts {
		fmt.Fprintf(w, "mount\t%s at %s for %s: %s read of %d files; %s\n", printable(m.Ref), printable(m.Dir), time.Since(m.Started).Round(time.Second), bytesText(m.Read), m.Files, mountText(m))
	}
	return w.Flush()
}

// printSites says what goes on between this site and others.
func printSites(w io.Writer, s node.Status) {
	for _, p := range s.Parents {
		fmt.Fprintf(w, "parent %s\t%s, %s received%s\n", printable(p.Name), p.State, bytesText(p.Received), because(p.Error))
	}
	if made := s.WAN; made != nil && made.Layers > 0 {
		fmt.Fprintf(w, "made again\t%d layers of %s, for which %s came\n", made.Layers, bytesText(made.Asked), bytesText(made.Moved.Moved))
	}
	if s.SiteID != "" {
		fmt.Fprintf(w, "known to parents as\t%s\n", s.SiteID)
	}
	for _, a := range s.Site {
		fmt.Fprintf(w, "reached by children at\t%s\n", a)
	}
	if o := s.Offers; o.Made+o.None+o.Failed > 0 || o.Waiting > 0 {
		fmt.Fprintf(w, "offers to children\t%d made, none of %d layers, %d failed, %d waiting, in %.0f s; %s of contents sent\n", o.Made, o.None, o.Failed, o.Waiting, o.Seconds, bytesText(o.Sent))
	}
	for _, l := range s.Links {
		fmt.Fprintf(w, "link %s\tin %s, out %s\n", printable(l.Link),
			spans(l.Hour.In, l.Today.In, l.Month.In), spans(l.Hour.Out, l.Today.Out, l.Month.Out))
		if l.Month.Asked > 0 {
			fmt.Fprintf(w, "\tasked for %s, saved %s\n",
				spans(l.Hour.Asked, l.Today.Asked, l.Month.Asked), spans(l.Hour.Saved, l.Today.Saved, l.Month.Saved))
		}
	}
	for _, i := range s.Images {
		fmt.Fprintf(w, "image %s\t%s asked for, %s moved, %s saved; %s came from parents, %s from registries, %s from members\n", printable(i.Ref()),
			bytesText(i.Asked), bytesText(i.Moved), bytesText(i.Saved), bytesText(i.Parents), bytesText(i.Registry), bytesText(i.Members))
	}
}

// spans are sums of bytes of this hour, today and the last 31 days.
func spans(hour, today, month int64) string {
	return fmt.Sprintf("%s this hour, %s today, %s in 31 days", bytesText(hour), bytesText(today), bytesText(month))
}

// because is the reason that follows a state, "" for none.
func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + printable(why)
}

// preheatText says how far a preheat is.
func preheatText(p node.PreheatStatus) string {
	images := printable(strings.Join(p.Refs, " "))
	if p.State == "scheduled" {
		return fmt.Sprintf("%s at %s: %s", p.State, p.At.Format(time.RFC3339), images)
	}
	return fmt.Sprintf("%s: %s on %s%s", p.State, images, plural(len(p.Nodes), "node"), because(p.Error))
}

// mountText says what came for a mount.
func mountText(m proxy.MountStatus) string {
	text := travelText(m.Demanded.Plus(m.Ahead))
	if m.Rest != "" {
		text += "; the rest: " + printable(m.Rest)
	}
	return text
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// offline runs a command on the data directory: through the node that holds it,
// whose admin listener the directory's lock or else f names, or by a node without
// listeners that lives as long as own runs.
func offline(e *env, cfg node.DataConfig, f nodeFlag, through func(nodeFlag) error, own func(*node.Node) error) error {
	n, err := node.New(node.Config{DataConfig: cfg}, quietLogger(e.stderr))
	var locked *chunkstore.LockedError
	if errors.As(err, &locked) {
		if _, admin, ok := strings.Cut(locked.Holder, "admin "); ok {
			f.Node = admin
		}
		return through(f)
	}
	if err != nil {
		return err
	}
	return errors.Join(own(n), n.Close())
}

// fsckCmd checks a store: through the node that holds it, else by itself.
type fsckCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`
	Repair          bool `name:"repair" help:"Fetch what was dropped again, from the registries that it came from."`
	JSON            bool `name:"json" help:"Print JSON, a line for each thing found and one for the sum."`
}

func (c *fsckCmd) Run(e *env) error {
	var report node.FsckReport
	err := offline(e, c.DataConfig, c.nodeFlag,
		func(f nodeFlag) (err error) {
			report, err = c.through(e, f)
			return err
		},
		func(n *node.Node) (err error) {
			report, err = n.Fsck(e.ctx, c.Repair, func(err error) { c.found(e, err.Error()) })
			return err
		})
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(e.stdout).Encode(node.FsckLine{Report: &report})
	} else {
		_, err = fmt.Fprintf(e.stdout, "%d blobs, %d chunks, %s checked: %d wrong and dropped, %d unreadable; %d of %d damaged blobs fetched again\n",
			report.Blobs, report.Chunks, bytesText(report.Bytes), report.Wrong, report.Failed, report.Repaired, report.Damaged)
	}
	switch {
	case err != nil:
		return err
	case report.Failed > 0 || report.Repaired < report.Damaged:
		return errors.New("the store was damaged; what was dropped is fetched again when it is asked for, or by --repair")
	}
	return nil
}

func (c *fsckCmd) through(e *env, f nodeFlag) (node.FsckReport, error) {
	body, err := f.do(e.ctx, http.MethodPost, fmt.Sprintf("/api/v1/fsck?repair=%v", c.Repair))
	if err != nil {
		return node.FsckReport{}, err
	}
	defer body.Close()
	lines := json.NewDecoder(body)
	for {
		var line node.FsckLine
		if err := lines.Decode(&line); err != nil {
			return node.FsckReport{}, fmt.Errorf("node %s: fsck ended early: %w", f.Node, err)
		}
		switch {
		case line.Error != "":
			return node.FsckReport{}, errors.New(line.Error)
		case line.Report != nil:
			return *line.Report, nil
		default:
			c.found(e, line.Found)
		}
	}
}

func (c *fsckCmd) found(e *env, what string) {
	if c.JSON {
		_ = json.NewEncoder(e.stdout).Encode(node.FsckLine{Found: what})
		return
	}
	fmt.Fprintln(e.stdout, what)
}

// gcCmd makes room in a store.
type gcCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`
	Keep            node.Size `name:"keep" local:"" default:"0" placeholder:"SIZE" help:"How much to keep. Default: what eviction under --cache-size leaves."`
	All             bool      `name:"all" help:"Keep nothing."`
}

func (c *gcCmd) Run(e *env) error {
	keep := int64(c.Keep)
	if keep == 0 && !c.All {
		keep = -1
	}
	var freed int64
	err := offline(e, c.DataConfig, c.nodeFlag,
		func(f nodeFlag) error {
			var answer struct{ Freed int64 }
			err := f.ask(e.ctx, fmt.Sprintf("/api/v1/gc?keep=%d", keep), &answer)
			freed = answer.Freed
			return err
		},
		func(n *node.Node) (err error) {
			freed, err = n.GC(keep)
			return err
		})
	if err == nil {
		_, err = fmt.Fprintf(e.stdout, "%s freed\n", bytesText(freed))
	}
	return err
}

// invalidateCmd makes a node ask its upstream about a tag.
type invalidateCmd struct {
	nodeFlag `embed:""`
	Ref      string `arg:"" name:"ref" help:"Tag to look up anew, as in alpine:3, or a repository for each of its tags."`
}

func (c *invalidateCmd) Run(e *env) error {
	var answer node.Invalidated
	if err := c.ask(e.ctx, "/api/v1/invalidate?ref="+url.QueryEscape(c.Ref), &answer); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: %d tags forgotten", c.Ref, answer.Tags)
	if answer.Members > 0 {
		fmt.Fprintf(e.stdout, ", and by %d other members what they knew", answer.Members)
	}
	fmt.Fprintln(e.stdout)
	if len(answer.Failed) > 0 {
		return fmt.Errorf("%d members were not told:\n%s", len(answer.Failed), strings.Join(answer.Failed, "\n"))
	}
	return nil
}
