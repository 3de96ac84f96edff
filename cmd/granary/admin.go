package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// nodeFlag is how commands find a running node.
type nodeFlag struct {
	Node string `name:"node" default:"http://127.0.0.1:5051" placeholder:"URL" help:"Admin listener of the node."`
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
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(f.Node, "/")+path, nil)
	if err != nil {
		return nil, fmt.Errorf("--node: %w", err)
	}
	direct := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	resp, err := direct.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no node answers at %s (is 'granary serve' running, and is --node its --admin address?): %w", f.Node, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("node %s: %s: %s", f.Node, path, resp.Status)
	}
	return resp.Body, nil
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
	if s.Degraded != "" {
		fmt.Fprintf(w, "degraded\t%s\n", s.Degraded)
	}
	for _, source := range slices.Sorted(maps.Keys(s.Served)) {
		fmt.Fprintf(w, "served from %s\t%s\n", source, bytesText(s.Served[source]))
	}
	fmt.Fprintf(w, "received from upstream\t%s\n", bytesText(s.Received))
	fmt.Fprintf(w, "upstreams\t%s\n", strings.Join(s.Upstreams, " "))
	return w.Flush()
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// fsckCmd checks a store: through the node that holds it, else by itself.
type fsckCmd struct {
	nodeFlag `embed:""`
	DataDir  string `name:"data-dir" default:"${data_dir}" placeholder:"DIR" help:"The store to check, when no node holds it."`
	JSON     bool   `name:"json" help:"Print JSON, a line for each thing found and one for the sum."`
}

func (c *fsckCmd) Run(e *env) error {
	report, err := c.check(e)
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(e.stdout).Encode(node.FsckLine{Report: &report})
	} else {
		_, err = fmt.Fprintf(e.stdout, "%d blobs, %d chunks, %s checked: %d wrong and dropped, %d unreadable\n",
			report.Blobs, report.Chunks, bytesText(report.Bytes), report.Wrong, report.Failed)
	}
	if err == nil && report.Wrong+report.Failed > 0 {
		err = fmt.Errorf("the store was damaged; what was dropped is fetched again when it is asked for")
	}
	return err
}

func (c *fsckCmd) check(e *env) (chunkstore.FsckReport, error) {
	unlock, err := chunkstore.Lock(c.DataDir, "granary fsck")
	var locked *chunkstore.LockedError
	if errors.As(err, &locked) {
		if _, admin, ok := strings.Cut(locked.Holder, "admin "); ok {
			c.Node = admin
		}
		return c.checkThroughNode(e)
	}
	if err != nil {
		return chunkstore.FsckReport{}, err
	}
	defer unlock()
	s, err := chunkstore.Open(c.DataDir, chunkstore.Config{Report: func(err error) { e.log.Error("store", "error", err) }})
	if err != nil {
		return chunkstore.FsckReport{}, err
	}
	report, err := s.Fsck(e.ctx, nil, func(err error) { c.found(e, err.Error()) })
	return report, errors.Join(err, s.Close())
}

func (c *fsckCmd) checkThroughNode(e *env) (chunkstore.FsckReport, error) {
	body, err := c.do(e.ctx, http.MethodPost, "/api/v1/fsck")
	if err != nil {
		return chunkstore.FsckReport{}, err
	}
	defer body.Close()
	lines := json.NewDecoder(body)
	for {
		var line node.FsckLine
		if err := lines.Decode(&line); err != nil {
			return chunkstore.FsckReport{}, fmt.Errorf("node %s: fsck ended early: %w", c.Node, err)
		}
		switch {
		case line.Error != "":
			return chunkstore.FsckReport{}, errors.New(line.Error)
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
