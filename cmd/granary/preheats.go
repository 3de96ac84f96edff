package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// list shows the node's preheats, the latest first.
func (c *preheatCmd) list(e *env) error {
	var all []node.PreheatStatus
	if err := c.ask(e, http.MethodGet, "/api/v1/preheat", &all); err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(all)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\n", printable(s.ID), preheatText(s))
	}
	return w.Flush()
}

// end ends a preheat. That it is over already is no failure, as with whatever is to be gone.
func (c *preheatCmd) end(e *env) error {
	var s node.PreheatStatus
	if err := c.ask(e, http.MethodDelete, "/api/v1/preheat/"+url.PathEscape(c.Cancel), &s); err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(s)
	}
	what := "ended"
	if s.State == "done" {
		what = "was done already"
	}
	_, err := fmt.Fprintf(e.stdout, "%s: %s\n", printable(s.ID), what)
	return err
}

// ask reads what the node answers.
func (c *preheatCmd) ask(e *env, method, path string, v any) error {
	body, err := c.do(e.ctx, method, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("node %s: preheat: %w", c.Node, err)
	}
	return nil
}
