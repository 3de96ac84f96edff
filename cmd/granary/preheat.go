package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/ref"
)

// preheatCmd has nodes fetch images before anybody pulls them, and tells of such preheats.
type preheatCmd struct {
	nodeFlag `embed:""`

	Refs     []string `arg:"" optional:"" name:"ref" help:"Images to bring, as in alpine:3 or ghcr.io/org/app@sha256:…"`
	List     bool     `name:"list" xor:"instead" help:"Instead, show the preheats that the node has scheduled, those that run, and those that were over last."`
	Cancel   string   `name:"cancel" xor:"instead" placeholder:"ID" help:"Instead, end a preheat, or take it out of the schedule. What has come stays."`
	AllNodes bool     `name:"all-nodes" xor:"where" help:"Bring them to all members of the node's cluster."`
	Zone     *string  `name:"zone" local:"" xor:"where" placeholder:"NAME" help:"Bring them to the members of one zone."`
	Platform string   `name:"platform" default:"${platform}" placeholder:"OS/ARCH[/VARIANT]" help:"Which image of an index to bring; 'all' for each of them."`
	At       string   `name:"at" placeholder:"TIME" help:"Bring them then: HH:MM, the next such time on the node's clock, or RFC 3339, at most 31 days ahead."`
	Wait     bool     `name:"wait" help:"Show how far it is, and end when all is there: with status 1 if anything failed."`
	JSON     bool     `name:"json" help:"Print JSON; with --wait a line for each change."`

	DefaultUpstream string `name:"default-upstream" default:"docker.io" placeholder:"HOST" help:"Registry of images that name none, as the node has it."`
	DockerConfig    string `name:"docker-config" placeholder:"FILE" help:"Docker's config.json with the credentials for private images, which the node gets for as long as it takes. Default: that of the user."`
}

// Validate is asked by kong before Run.
func (c *preheatCmd) Validate() error {
	instead := c.List || c.Cancel != ""
	switch {
	case instead && (len(c.Refs) > 0 || c.AllNodes || c.Zone != nil || c.At != "" || c.Wait):
		return errors.New("--list and --cancel are about preheats that the node has already, and take no images, places or times")
	case !instead && len(c.Refs) == 0:
		return errors.New("there is no image to bring")
	}
	return nil
}

func (c *preheatCmd) Run(e *env) error {
	switch {
	case c.List:
		return c.list(e)
	case c.Cancel != "":
		return c.end(e)
	}
	q := node.Preheat{Refs: c.Refs, Platform: c.Platform, AllNodes: c.AllNodes, Zone: c.Zone, At: c.At, Wait: c.Wait}
	var err error
	if q.Authorization, err = c.authorization(e); err != nil {
		return err
	}
	p, err := json.Marshal(q)
	if err != nil {
		return err
	}
	body, err := c.send(e.ctx, http.MethodPost, "/api/v1/preheat", bytes.NewReader(p), int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	if !c.Wait {
		return c.begun(e, body)
	}
	s, err := c.watch(e, body)
	if err != nil {
		return err
	}
	return c.ended(e, s)
}

// authorization returns what the user has for the images' registries.
func (c *preheatCmd) authorization(e *env) (map[string]string, error) {
	all := make(map[string]string)
	if c.At != "" {
		if c.DockerConfig != "" {
			return nil, &node.SettingError{Name: "docker-config", Err: errors.New("credentials are not kept until --at; the node's own are used then")}
		}
		return all, nil
	}
	for _, s := range c.Refs {
		want, err := ref.Parse(s, c.DefaultUpstream)
		if err != nil {
			return nil, err
		}
		get := node.UserCredentials(c.DockerConfig, want.Host)
		if get == nil {
			if c.DockerConfig != "" {
				return nil, fmt.Errorf("--docker-config: %s cannot be read", c.DockerConfig)
			}
			continue
		}
		username, password, err := get(e.ctx, want.Host)
		if err != nil {
			return nil, err
		}
		if username != "" || password != "" {
			all[want.Host] = "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
		}
	}
	return all, nil
}

// begun says that the node has taken it on.
func (c *preheatCmd) begun(e *env, body io.Reader) error {
	var s node.PreheatStatus
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&s); err != nil {
		return fmt.Errorf("node %s: preheat: %w", c.Node, err)
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(s)
	}
	if s.State == "scheduled" {
		_, err := fmt.Fprintf(e.stdout, "%s: %s\n", s.ID, scheduledText(s))
		return err
	}
	_, err := fmt.Fprintf(e.stdout, "%s: %s on %s; 'granary status' tells how far\n", s.ID, plural(len(s.Refs), "image"), plural(len(s.Nodes), "node"))
	return err
}

func scheduledText(s node.PreheatStatus) string {
	return fmt.Sprintf("%s scheduled at %s", plural(len(s.Refs), "image"), s.At.Format(time.RFC3339))
}

// watch shows how far it is until it is over.
func (c *preheatCmd) watch(e *env, body io.Reader) (s node.PreheatStatus, err error) {
	bars := newProgress(e.stderr)
	defer bars.finish()
	shown := make(map[string]*bar)
	for lines := json.NewDecoder(body); ; {
		var now node.PreheatStatus
		err := lines.Decode(&now)
		if errors.Is(err, io.EOF) && (s.State == "done" || s.State == "failed") {
			return s, nil
		}
		if err != nil && c.At != "" && s.ID != "" {
			return s, fmt.Errorf("node %s: it is not waited for, and goes on there: 'granary preheat --cancel %s' ends it: %w", c.Node, printable(s.ID), err)
		}
		if err != nil {
			return s, fmt.Errorf("node %s: preheat ended early: %w", c.Node, err)
		}
		s = now
		if c.JSON {
			if err := json.NewEncoder(e.stdout).Encode(s); err != nil {
				return s, err
			}
			continue
		}
		if s.State == "scheduled" {
			if _, err := fmt.Fprintf(e.stderr, "%s: %s\n", s.ID, scheduledText(s)); err != nil {
				return s, err
			}
			continue
		}
		for _, n := range s.Nodes {
			for _, i := range n.Images {
				bars.preheat(shown, cmp.Or(n.Name, "node"), i)
			}
		}
	}
}

// preheat shows an image on a node: a bar, and a line when it is over.
func (p *progress) preheat(shown map[string]*bar, on string, i node.PreheatImage) {
	title := printable(i.Ref) + " on " + printable(on)
	b := shown[title]
	if b == nil {
		b = &bar{p: p, title: title, begin: time.Now()}
		shown[title] = b
		p.show(b)
	}
	over := i.State == "done" || i.State == "failed"
	if b.over {
		return
	}
	b.set(i.Done, i.Size)
	if over {
		b.over = true
		b.done(cmp.Or(printable(i.Error), i.State))
	}
}

// ended says what came of it. The error is that something failed.
func (c *preheatCmd) ended(e *env, s node.PreheatStatus) error {
	var failed []string
	var bytes int64
	if s.Error != "" {
		failed = append(failed, printable(s.Error))
	}
	for _, n := range s.Nodes {
		name := printable(cmp.Or(n.Name, "the node"))
		if n.Error != "" {
			failed = append(failed, name+": "+printable(n.Error))
		}
		for _, i := range n.Images {
			bytes += i.Done
			if i.Error != "" {
				failed = append(failed, name+": "+printable(i.Error))
			}
			for _, m := range i.Missing {
				fmt.Fprintf(e.stderr, "%s: missing: %s\n", name, printable(m))
			}
		}
	}
	if s.State != "done" {
		return fmt.Errorf("preheat failed:\n%s", strings.Join(failed, "\n"))
	}
	if c.JSON {
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, "%s on %s, %s in %.1fs\n", plural(len(s.Refs), "image"), plural(len(s.Nodes), "node"), bytesText(bytes), s.Ended.Sub(s.Started).Seconds())
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
