package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/compat"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/upstream"
)

// survey asks what the images below a manifest say of a host.
type survey struct {
	from     *upstream.Repository
	host     *compat.Host
	platform *ocispec.Platform // nil for all

	images []*candidate // in the order of the index
	asked  int          // how many entries of indexes the registry was asked about
}

// Limits of a survey.
const (
	maxAsked  = 256 // entries that are for the platform: each takes some requests
	maxImages = 4096
)

// otherPlatform stands for a verdict on images that are not judged.
const otherPlatform compat.Verdict = "is for another platform"

// candidate is an image of an index, or one that stands alone.
type candidate struct {
	Digest   digest.Digest `json:"digest"`
	Platform string        `json:"platform,omitempty"`
	compat.Judgement
	Statements []statement `json:"statements,omitempty"`

	path []digest.Digest // of the entries that lead to it, its own included
}

// statement is what one document says of an image.
type statement struct {
	Source       string             `json:"source"`
	Digest       digest.Digest      `json:"digest,omitempty"` // of what refers to the document
	Problem      string             `json:"problem,omitempty"`
	Alternatives []compat.Judgement `json:"alternatives,omitempty"`
}

// judgement is that of the best alternative. A document that cannot be read may say anything.
func (s statement) judgement() compat.Judgement {
	if s.Problem != "" {
		return compat.Judgement{Verdict: compat.Unknown, Unjudged: []string{s.Source + ": " + s.Problem}}
	}
	return compat.Best(s.Alternatives)
}

// says reports whether anything is said of the images that were judged.
func (s *survey) says() bool {
	return slices.ContainsFunc(s.images, func(c *candidate) bool { return c.Verdict != otherPlatform && c.Verdict != compat.Silent })
}

// best returns the image that is to be taken: the first that no other is better than. It is
// nil if there is none for the platform.
func (s *survey) best() (best *candidate) {
	for _, c := range s.images {
		if c.Verdict != otherPlatform && (best == nil || c.Compare(best.Judgement) > 0) {
			best = c
		}
	}
	return best
}

// image surveys what a reference names.
func (s *survey) image(ctx context.Context, m upstream.Manifest) error {
	return s.below(ctx, m, &candidate{Digest: m.Digest, path: []digest.Digest{m.Digest}}, 0)
}

// below surveys a manifest that c stands for: the images of an index, or else c itself.
func (s *survey) below(ctx context.Context, m upstream.Manifest, c *candidate, depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("indexes are nested more than %d deep", maxNesting)
	}
	said, err := s.nfd(ctx, m.Digest)
	if err != nil {
		return err
	}
	c.Statements = append(c.Statements, said...)
	entries, err := compat.ParseIndex(m.Bytes)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	if len(entries) == 0 {
		s.judge(c)
		return nil
	}
	if len(s.images)+len(entries) > maxImages {
		return fmt.Errorf("manifest %s: with it there are more than %d images", m.Digest, maxImages)
	}
	var descs []ocispec.Descriptor
	for _, e := range entries {
		descs = append(descs, e.Descriptor)
	}
	chosen, err := graph.Candidates(descs, s.platform)
	var none *graph.PlatformError
	if errors.As(err, &none) && depth > 0 {
		err = nil // another index may have what this one lacks
	}
	for i := 0; err == nil && i < len(entries); i++ {
		err = s.entry(ctx, entries[i], c, slices.Contains(chosen, i), depth)
	}
	return err
}

// entry surveys an entry of the index that above stands for.
func (s *survey) entry(ctx context.Context, e compat.Entry, above *candidate, chosen bool, depth int) error {
	c := &candidate{Digest: e.Digest, Statements: slices.Clone(above.Statements), path: append(slices.Clone(above.path), e.Digest)}
	if e.Platform != nil {
		c.Platform = graph.PlatformText(e.Platform)
	}
	if !chosen {
		c.Verdict = otherPlatform
		s.images = append(s.images, c)
		return nil
	}
	if s.asked++; s.asked > maxAsked {
		return fmt.Errorf("more than %d images are for the platform", maxAsked)
	}
	if e.Compat != nil || e.Malformed {
		said, err := s.nested(ctx, e)
		if err != nil {
			return err
		}
		c.Statements = append(c.Statements, said)
	}
	if graph.IsIndex(e.MediaType) {
		m, err := s.from.Manifest(ctx, string(e.Digest))
		if err != nil {
			return err
		}
		return s.below(ctx, m, c, depth+1)
	}
	said, err := s.nfd(ctx, e.Digest)
	if err != nil {
		return err
	}
	c.Statements = append(c.Statements, said...)
	s.judge(c)
	return nil
}

// judge takes a candidate whose statements are complete.
func (s *survey) judge(c *candidate) {
	var all []compat.Judgement
	for _, said := range c.Statements {
		all = append(all, said.judgement())
	}
	c.Judgement = compat.All(all)
	s.images = append(s.images, c)
}

// nested returns what the platform of an entry says (proposals I and J).
func (s *survey) nested(ctx context.Context, e compat.Entry) (statement, error) {
	const source = "platform.compat"
	if e.Malformed {
		return statement{Source: source, Problem: "it is no descriptor"}, nil
	}
	d, err := s.document(ctx, *e.Compat)
	return s.statement(source, e.Compat.Digest, d, err)
}

func (s *survey) document(ctx context.Context, desc ocispec.Descriptor) (*compat.Document, error) {
	switch desc.MediaType {
	case compat.MediaType:
		p, err := s.content(ctx, desc)
		if err != nil {
			return nil, err
		}
		return compat.ParseBlob(p)
	case ocispec.MediaTypeImageManifest:
		m, err := s.manifest(ctx, desc.Digest)
		if err != nil {
			return nil, err
		}
		p, err := s.content(ctx, m.Config)
		if err != nil {
			return nil, err
		}
		return compat.ParseConfig(p)
	}
	return nil, fmt.Errorf("documents of type %.80q are not known", desc.MediaType)
}

// nfd returns what the newest of NFD's artifacts says that refer to a manifest.
func (s *survey) nfd(ctx context.Context, subject digest.Digest) ([]statement, error) {
	listed, err := registrySource{s.from}.Referrers(ctx, subject)
	if err != nil && !errors.Is(err, graph.ErrNotFound) {
		return nil, fmt.Errorf("referrers of %s: %w", subject, err)
	}
	artifact, ok := newest(listed, compat.NFDArtifactType)
	if !ok {
		return nil, nil
	}
	d, err := s.nfdDocument(ctx, artifact.Digest)
	said, err := s.statement("NFD", artifact.Digest, d, err)
	return []statement{said}, err
}

func (s *survey) nfdDocument(ctx context.Context, artifact digest.Digest) (*compat.Document, error) {
	m, err := s.manifest(ctx, artifact)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) == 0 || m.Layers[0].MediaType != compat.NFDMediaType {
		return nil, fmt.Errorf("its first layer is not of type %s", compat.NFDMediaType)
	}
	p, err := s.content(ctx, m.Layers[0])
	if err != nil {
		return nil, err
	}
	return compat.ParseNFD(p)
}

// newest returns the newest artifact of a type; of several the last. One without a time is
// older than all that have one.
func newest(listed []ocispec.Descriptor, artifactType string) (found ocispec.Descriptor, ok bool) {
	var made time.Time
	for _, d := range listed {
		when, _ := time.Parse(time.RFC3339, d.Annotations[ocispec.AnnotationCreated])
		if d.ArtifactType == artifactType && !when.Before(made) {
			found, made, ok = d, when, true
		}
	}
	return found, ok
}

// statement judges by a document. One that is not there, or is none, is a problem of the image;
// if the registry cannot be asked the survey ends.
func (s *survey) statement(source string, by digest.Digest, d *compat.Document, err error) (statement, error) {
	said := statement{Source: source, Digest: by}
	var silent *silentError
	switch {
	case errors.As(err, &silent):
		return said, fmt.Errorf("%s %s: %w", source, by, silent.error)
	case err != nil:
		said.Problem = err.Error()
	default:
		said.Alternatives = d.Judge(s.host)
	}
	return said, nil
}

// silentError says that a registry does not answer.
type silentError struct{ error }

func answered(err error) error {
	var corrupt *chunk.CorruptError
	if err == nil || errors.Is(err, chunk.ErrNotFound) || errors.As(err, &corrupt) {
		return err
	}
	return &silentError{err}
}

func (s *survey) manifest(ctx context.Context, d digest.Digest) (m ocispec.Manifest, err error) {
	answer, err := s.from.Manifest(ctx, string(d))
	if err != nil {
		return m, answered(err)
	}
	if err := json.Unmarshal(answer.Bytes, &m); err != nil {
		return m, fmt.Errorf("manifest %s: %w", d, err)
	}
	return m, nil
}

// content reads a blob, or takes the data that its descriptor has with it.
func (s *survey) content(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("blob %.80q: %w", string(desc.Digest), err)
	}
	if desc.Size < 0 || desc.Size > compat.MaxSize {
		return nil, fmt.Errorf("blob %s: a document does not have %d bytes", desc.Digest, desc.Size)
	}
	if desc.Data != nil && copyVerified(io.Discard, bytes.NewReader(desc.Data), desc) == nil {
		return desc.Data, nil
	}
	resp, err := s.from.Get(ctx, "blobs/"+string(desc.Digest), nil, nil)
	if err != nil {
		return nil, answered(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &silentError{fmt.Errorf("blob %s: %s", desc.Digest, resp.Status)}
	}
	p, err := io.ReadAll(io.LimitReader(resp.Body, desc.Size+1))
	if err != nil {
		return nil, &silentError{err}
	}
	return p, copyVerified(io.Discard, bytes.NewReader(p), desc)
}
