package graph

import (
	"bytes"
	"cmp"
	_ "crypto/sha512" // go-digest knows an algorithm when it is linked in
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxDescriptors is how many descriptors a manifest may have.
const MaxDescriptors = 16 << 10

const (
	maxSize      = 1 << 50 // bytes of a blob; a larger number is none that anybody has
	maxPath      = 256     // bytes of a path that is told
	maxMediaType = 255     // bytes (RFC 6838, section 4.2)
)

// Role says as what a descriptor stands where it stands.
type Role string

// Roles.
const (
	Root     Role = "root"     // it was asked for
	Config   Role = "config"   // of an image or artifact
	Layer    Role = "layer"    // in layers, or in the blobs of an artifact manifest
	Manifest Role = "manifest" // in the manifests of an index
	Subject  Role = "subject"  // what the manifest is about
	Nested   Role = "nested"   // in a field that the specification does not know
	Referrer Role = "referrer" // a manifest that has the other as its subject
	Tagged   Role = "tagged"   // a manifest that a tag made of the other's digest names
)

// Place is where a descriptor stands.
type Place struct {
	Role Role
	// Path is that in the manifest's JSON, as in manifests[0].platform.compat, shortened
	// if it is long. Of what is Tagged it is the tag, of a Root or Referrer "".
	Path string
}

// Reference is a descriptor in a manifest. Of what may stand in a descriptor it has media
// type, digest, size, annotations, artifact type, the platform's texts, and data.
//
// In one of the specification's places may stand something else than a descriptor. Then
// Malformed is true, and Descriptor has what there was of it.
type Reference struct {
	ocispec.Descriptor
	Place
	Malformed bool

	entry  int // in manifests that it stands in, or -1
	offset int64
}

// References returns what a manifest refers to, in the order of its text. What is not
// JSON, or is nested more than 10,000 deep, refers to nothing. The error is a
// [*LimitError].
func References(manifest []byte) ([]Reference, error) {
	if !json.Valid(manifest) { // also bounds the depth, and so the stack
		return nil, nil
	}
	s := &search{dec: json.NewDecoder(bytes.NewReader(manifest))}
	s.dec.UseNumber()
	if _, err := s.value(); err != nil {
		return nil, err
	}
	// A descriptor is complete when its object ends, after those within it.
	slices.SortStableFunc(s.found, func(a, b Reference) int { return cmp.Compare(a.offset, b.offset) })
	return s.found, nil
}

// Held returns the digests of what a manifest keeps beside it: of all that it refers to but
// layers, which are large, and fetched again when they are wanted.
func Held(manifest []byte) (held []digest.Digest) {
	all, _ := References(manifest) // one with too many descriptors is no manifest that was served
	for _, r := range all {
		if r.Role != Layer && r.Digest.Validate() == nil {
			held = append(held, r.Digest)
		}
	}
	return held
}

// search reads JSON token by token, and so sees each field where it stands, also those that
// stand twice.
type search struct {
	dec   *json.Decoder
	at    []step
	found []Reference
}

// step is a key of an object, or an index of an array.
type step struct {
	key   string
	index int // -1 for a key
}

// object is what an object may be a descriptor by.
type object struct {
	texts                 map[string]string
	size                  json.Number
	platform, annotations *object
}

// value reads a value: an *object, a string, a json.Number, a bool, or nil for null and for
// an array.
func (s *search) value() (any, error) {
	v, err := s.dec.Token()
	if err != nil {
		return nil, err
	}
	offset := s.dec.InputOffset()
	switch v {
	case json.Delim('['):
		return nil, s.array()
	case json.Delim('{'):
		o, err := s.object()
		if err != nil {
			return nil, err
		}
		v = o
	}
	return v, s.note(v, offset)
}

func (s *search) array() error {
	for i := 0; s.dec.More(); i++ {
		s.at = append(s.at, step{"", i})
		_, err := s.value()
		s.at = s.at[:len(s.at)-1]
		if err != nil {
			return err
		}
	}
	_, err := s.dec.Token()
	return err
}

func (s *search) object() (*object, error) {
	o := &object{}
	for s.dec.More() {
		key, err := s.dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := key.(string) // it is one
		s.at = append(s.at, step{name, -1})
		v, err := s.value()
		s.at = s.at[:len(s.at)-1]
		if err != nil {
			return nil, err
		}
		o.set(name, v)
	}
	_, err := s.dec.Token()
	return o, err
}

func (o *object) set(name string, v any) {
	switch v := v.(type) {
	case string:
		if o.texts == nil {
			o.texts = make(map[string]string)
		}
		o.texts[name] = v
	case json.Number:
		if name == "size" {
			o.size = v
		}
	case *object:
		switch name {
		case "platform":
			o.platform = v
		case "annotations":
			o.annotations = v
		}
	}
}

// note keeps a value that is a descriptor, or that should be one.
func (s *search) note(v any, offset int64) error {
	role, entry := s.role()
	o, _ := v.(*object)
	if v == nil || o == nil && role == Nested {
		return nil
	}
	r := Reference{Place: Place{Role: role}, entry: entry, offset: offset}
	var ok bool
	if o != nil {
		r.Descriptor, ok = o.descriptor()
	}
	// In places that are descriptors' a media type may be missing.
	if role == Nested && (!ok || r.MediaType == "" || len(r.MediaType) > maxMediaType) {
		return nil
	}
	r.Malformed, r.Path = !ok, s.path()
	s.found = append(s.found, r)
	if len(s.found) > MaxDescriptors {
		return &LimitError{Reason: fmt.Sprintf("it has more than %d descriptors", MaxDescriptors)}
	}
	return nil
}

// role returns the role of what is being read, and which of manifests it stands in, or -1.
func (s *search) role() (role Role, entry int) {
	switch {
	case len(s.at) == 1 && s.at[0].key == "config":
		return Config, -1
	case len(s.at) == 1 && s.at[0].key == "subject":
		return Subject, -1
	case len(s.at) < 2 || s.at[1].index < 0:
		return Nested, -1
	}
	role, entry = Nested, -1
	switch s.at[0].key {
	case "layers", "blobs":
		role = Layer
	case "manifests":
		role, entry = Manifest, s.at[1].index
	}
	if len(s.at) > 2 {
		role = Nested
	}
	return role, entry
}

func (s *search) path() string {
	var b strings.Builder
	for i, at := range s.at {
		switch {
		case b.Len() > maxPath:
			return b.String()[:maxPath] + "…"
		case at.index >= 0:
			b.WriteString("[" + strconv.Itoa(at.index) + "]")
		case i > 0:
			b.WriteString("." + at.key)
		default:
			b.WriteString(at.key)
		}
	}
	return b.String()
}

// descriptor reads an object as a descriptor. ok is false for one without a digest or a
// size. A digest may be of an algorithm that is not known here.
func (o *object) descriptor() (desc ocispec.Descriptor, ok bool) {
	size, sized := wholeNumber(o.size)
	desc = ocispec.Descriptor{
		MediaType: o.texts["mediaType"], Digest: digest.Digest(o.texts["digest"]), Size: size, ArtifactType: o.texts["artifactType"],
	}
	if o.annotations != nil {
		desc.Annotations = o.annotations.texts
	}
	if p := o.platform; p != nil {
		desc.Platform = &ocispec.Platform{
			OS: p.texts["os"], Architecture: p.texts["architecture"], Variant: p.texts["variant"], OSVersion: p.texts["os.version"],
		}
	}
	if data, there := o.texts["data"]; there {
		desc.Data = decode(data)
	}
	err := desc.Digest.Validate()
	return desc, sized && (err == nil || errors.Is(err, digest.ErrDigestUnsupported))
}

// decode decodes base64. What is none stays as it is, and so will not match its digest.
func decode(data string) []byte {
	p, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return []byte(data)
	}
	return p
}

// wholeNumber reads the size of a blob. JSON knows one kind of number: 1e3 is a size.
func wholeNumber(n json.Number) (int64, bool) {
	if i, err := n.Int64(); err == nil {
		return i, i >= 0 && i <= maxSize
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f > maxSize || f != float64(int64(f)) {
		return 0, false
	}
	return int64(f), true
}
