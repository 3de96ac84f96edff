package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/compat"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// compatCmd shows which images of an index suit this machine, and why others do not.
type compatCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`

	Ref      string `arg:"" name:"ref" help:"Image, as in alpine:3 or ghcr.io/org/app@sha256:…"`
	Platform string `name:"platform" default:"${platform}" placeholder:"OS/ARCH[/VARIANT]" help:"Which images of an index to judge; 'all' for each of them."`
	JSON     bool   `name:"json" help:"Print JSON."`
}

// compatReport is what compat shows.
type compatReport struct {
	Ref      string       `json:"ref"`
	Digest   string       `json:"digest"` // of what the reference names
	Platform string       `json:"platform"`
	Host     *compat.Host `json:"host"`
	Images   []*candidate `json:"images"`
	Choice   string       `json:"choice,omitempty"` // digest of what pull --compat=prefer takes
}

func (c *compatCmd) Run(e *env) error {
	want, err := ref.Parse(c.Ref, c.DefaultUpstream)
	if err != nil {
		return err
	}
	platform, err := parsePlatform(c.Platform)
	if err != nil {
		return err
	}
	url, done, err := registryFace(e, c.DataConfig, c.nodeFlag)
	if err != nil {
		return err
	}
	defer done()
	s := &survey{host: thisHost(), platform: platform}
	if s.from, err = repositoryAt(url, c.DataConfig, want, nodeTimeout); err != nil {
		return err
	}
	r, err := c.report(e.ctx, s, want)
	if err != nil {
		return fmt.Errorf("%s: %w", want, err)
	}
	if c.JSON {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		err = out.Encode(r)
	} else {
		err = r.print(e.stdout)
	}
	if err == nil && s.says() && s.best().Verdict != compat.Suits {
		err = fmt.Errorf("%s: no image for %s is known to suit this host", want, c.Platform)
	}
	return err
}

func (c *compatCmd) report(ctx context.Context, s *survey, want ref.Reference) (*compatReport, error) {
	m, err := s.from.Manifest(ctx, manifestName(want))
	if err != nil {
		return nil, err
	}
	if err := s.image(ctx, m); err != nil {
		return nil, err
	}
	r := &compatReport{Ref: want.String(), Digest: string(m.Digest), Platform: c.Platform, Host: s.host, Images: s.images}
	best := s.best()
	if best == nil {
		return nil, errors.New("no index has an image for " + c.Platform)
	}
	if s.platform != nil {
		r.Choice = string(best.Digest)
	}
	return r, nil
}

// manifestName is what a registry is asked for.
func manifestName(want ref.Reference) string {
	if want.Digest != "" {
		return string(want.Digest)
	}
	return want.Tag
}

// thisHost is the machine that the command runs on.
func thisHost() *compat.Host { return compat.ReadHost(os.DirFS("/")) }

// print prints the report for people.
func (r *compatReport) print(w io.Writer) error {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, printable(fmt.Sprintf(format, args...))) }
	add("this host: %s", hostText(r.Host))
	for _, c := range r.Images {
		taken := ""
		if string(c.Digest) == r.Choice {
			taken = "; pull --compat=prefer takes it"
		}
		add("%s %s: %s%s", c.Platform, c.Digest, c.Verdict, taken)
		for _, s := range c.Statements {
			for _, text := range s.texts() {
				add("    %s: %s", s.Source, text)
			}
		}
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func hostText(h *compat.Host) string {
	known := func(prefix, value string) string {
		if value == "" {
			value = "?"
		}
		return prefix + value
	}
	devices := "?"
	if h.PCI != nil {
		devices = fmt.Sprint(len(h.PCI))
	}
	return strings.Join([]string{known("CPU ", h.CPU.Vendor), known("Linux ", h.Kernel), known("glibc ", h.Glibc), devices + " PCI devices"}, ", ")
}

// texts are what a statement comes to: what suits, or else why nothing does.
func (s statement) texts() (texts []string) {
	if s.Problem != "" {
		return []string{s.Problem}
	}
	for _, j := range s.Alternatives {
		if j.Verdict == compat.Suits {
			best := s.judgement()
			return []string{label(best) + fmt.Sprintf("suits, conditions that hold: %d", best.Met)}
		}
		texts = append(texts, label(j)+why(j))
	}
	return texts
}

// label names an alternative, if it has names.
func label(j compat.Judgement) string {
	names := strings.Join(j.Tags, ", ")
	if j.Description != "" {
		names = strings.TrimSpace(names + fmt.Sprintf(" (%s)", j.Description))
	}
	if names == "" {
		return ""
	}
	return names + ": "
}

// why tells in words what keeps an image from suiting.
func why(j compat.Judgement) string {
	return strings.Join(slices.Concat(j.Unmet, j.Unjudged), "; ")
}

// What a pull makes of compatibility.
const (
	compatOff     = "off"
	compatRequire = "require"
)

// prefer returns the entries of indexes to take. It leaves that to the walk where there is no
// image for the platform.
func (p *puller) prefer(ctx context.Context, m upstream.Manifest) ([]digest.Digest, error) {
	s := &survey{from: p.from, host: thisHost(), platform: p.platform}
	if err := s.image(ctx, m); err != nil {
		return nil, err
	}
	best := s.best()
	if best == nil {
		return nil, nil
	}
	if p.compat == compatRequire && best.Verdict != compat.Suits {
		return nil, fmt.Errorf("no image is known to suit this host; of the best, %s", choiceText(best))
	}
	p.chosen = best
	return best.path, nil
}

// choiceText says what was chosen, and why that is no worse.
func choiceText(c *candidate) string {
	text := fmt.Sprintf("%s %s: %s", c.Platform, c.Digest, c.Verdict)
	if reasons := why(c.Judgement); reasons != "" {
		text += ": " + reasons
	}
	return printable(strings.TrimSpace(text))
}
