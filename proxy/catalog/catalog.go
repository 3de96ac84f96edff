// Package catalog remembers what a node has learned of repositories: what a tag
// was last resolved to, which digests belong to a repository, and, as records
// whose meaning is proxy/access's, who was served. It survives restarts, so that
// a node whose upstream is unreachable can answer what it has answered before.
// It decides nothing: how long a fact holds is for its readers to say.
package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// Member is a digest that belongs to a repository.
type Member struct {
	MediaType string `json:"mediaType,omitempty"` // as pushed or as the manifest says; "" if unknown
	Size      int64  `json:"size"`                // in bytes
	Manifest  bool   `json:"manifest,omitempty"`  // it was served as a manifest
	// Confirmed says that the upstream served it in this repository. Without it
	// a manifest of the repository names the digest, which anyone who may push
	// can have a manifest do.
	Confirmed bool `json:"confirmed,omitempty"`
	// Imported says that it was imported: it is served while the upstream cannot be asked.
	Imported bool `json:"imported,omitempty"`
}

// Tag is what a tag was last resolved to.
type Tag struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	Checked   time.Time     `json:"checked"` // when the upstream last said so, or it was imported
	Imported  bool          `json:"imported,omitempty"`
}

// Catalog is safe for concurrent use. What is put into it is there at once, and
// in its file soon after.
type Catalog struct {
	db     *bbolt.DB // nil for memory alone
	report func(error)
	wake   chan struct{} // there is something to be written
	stop   chan struct{} // closed by Close
	done   chan struct{} // closed when writeLoop has ended

	writeMu sync.Mutex     // held while the file is written
	counts  map[string]int // entries of the file by bucket; guarded by writeMu

	mu      sync.Mutex
	memory  map[string]map[string][]byte // by bucket: what is to be written, nil to be removed
	writing map[string]map[string][]byte // what is being written; its maps are not changed
}

// Open opens the catalog in the file at path, made if it is not there. A file
// that cannot be read as one is an error; it is the caller's to set it aside.
// report is told when the file cannot be written.
func Open(path string, report func(error)) (c *Catalog, err error) {
	var db *bbolt.DB
	defer func() {
		if r := recover(); r != nil { // so bbolt answers a damaged page
			c, err = nil, fmt.Errorf("catalog %s: damaged: %v", path, r)
			if db != nil {
				_ = db.Close()
			}
		}
	}()
	if err := checkPages(path); err != nil {
		return nil, fmt.Errorf("catalog %s: %w", path, err)
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("catalog %s: %w", path, err)
	}
	c = NewMemory()
	c.db, c.report, c.counts = db, report, make(map[string]int)
	c.wake, c.stop, c.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	err = db.Update(func(tx *bbolt.Tx) error {
		for name := range limits {
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return err
			}
			if err := b.ForEach(func(_, _ []byte) error { c.counts[name]++; return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("catalog %s: %w", path, err)
	}
	go c.writeLoop()
	return c, nil
}

// NewMemory returns a catalog that forgets everything with the process.
func NewMemory() *Catalog { return &Catalog{memory: newBuckets()} }

// Close writes what is not written yet, and closes the catalog. What is put into
// it from then on is forgotten.
func (c *Catalog) Close() error {
	if c.db == nil {
		return nil
	}
	close(c.stop)
	<-c.done
	return errors.Join(c.write(), c.db.Close())
}

// Tag returns what a tag of repository, given as host/name, was last resolved to.
func (c *Catalog) Tag(repository, tag string) (t Tag, ok bool) {
	ok = c.get(tags, repository+":"+tag, &t)
	return t, ok && t.Digest.Validate() == nil && t.Size >= 0
}

// SetTag records what a tag of repository was resolved to.
func (c *Catalog) SetTag(repository, tag string, t Tag) error {
	return c.put(entry{tags, repository + ":" + tag, t})
}

// ForgetTags forgets what a tag of repository, or with "" each of its tags, was
// resolved to. It returns how many were known.
func (c *Catalog) ForgetTags(repository, tag string) (n int, err error) {
	var entries []entry
	for _, k := range c.keys(tags, repository+":"+tag, limits[tags]) {
		if tag == "" || k == repository+":"+tag {
			entries = append(entries, entry{tags, k, nil})
		}
	}
	return len(entries), c.put(entries...)
}

// Tags returns what tags of repository were last resolved to, at most n of them.
func (c *Catalog) Tags(repository string, n int) map[string]Tag {
	found := make(map[string]Tag)
	for _, k := range c.keys(tags, repository+":", n) {
		tag := strings.TrimPrefix(k, repository+":")
		if t, ok := c.Tag(repository, tag); ok {
			found[tag] = t
		}
	}
	return found
}

// SomeTag returns a tag that is known, as host/name:tag; "" if none is.
func (c *Catalog) SomeTag() string {
	const enough = 64 // some may have been forgotten a moment ago
	for _, k := range c.keys(tags, "", enough) {
		return k
	}
	return ""
}

// Members returns what belongs to repository, at most n of it.
func (c *Catalog) Members(repository string, n int) map[digest.Digest]Member {
	found := make(map[digest.Digest]Member)
	for _, k := range c.keys(members, repository+"@", n) {
		d := digest.Digest(strings.TrimPrefix(k, repository+"@"))
		if m, ok := c.Member(repository, d); ok {
			found[d] = m
		}
	}
	return found
}

// Member returns what is known of d in repository. ok is false when d is not
// known to belong there.
func (c *Catalog) Member(repository string, d digest.Digest) (m Member, ok bool) {
	ok = c.get(members, repository+"@"+string(d), &m)
	return m, ok && m.Size >= 0
}

// AddMembers records digests that belong to repository. What the upstream has
// confirmed is not replaced by what a manifest says, and what was imported stays so.
func (c *Catalog) AddMembers(repository string, add map[digest.Digest]Member) error {
	var entries []entry
	for d, m := range add {
		old, known := c.Member(repository, d)
		m.Imported = m.Imported || known && old.Imported
		if known && (old == m || old.Confirmed && !m.Confirmed || old.Manifest && !m.Manifest) {
			continue
		}
		entries = append(entries, entry{members, repository + "@" + string(d), m})
		if m.Confirmed {
			entries = append(entries, entry{homes, string(d) + "@" + repository, struct{}{}})
		}
		if m.Imported {
			entries = append(entries, entry{imports, string(d), struct{}{}})
		}
	}
	return c.put(entries...)
}

// ForgetMember forgets that d belongs to repository.
func (c *Catalog) ForgetMember(repository string, d digest.Digest) error {
	return c.put(entry{members, repository + "@" + string(d), nil}, entry{homes, string(d) + "@" + repository, nil})
}

// Imported reports whether d was imported into any repository.
func (c *Catalog) Imported(d digest.Digest) bool { return c.get(imports, string(d), new(struct{})) }

// Supplier returns the host that what is stored of d came from, "" if that is not
// known.
func (c *Catalog) Supplier(d digest.Digest) (host string) {
	c.get(suppliers, string(d), &host)
	return host
}

// SetSupplier records the host that what is stored of d comes from.
func (c *Catalog) SetSupplier(d digest.Digest, host string) error {
	return c.put(entry{suppliers, string(d), host})
}

// Homes returns repositories in which d is a confirmed member, a hundred at
// most.
func (c *Catalog) Homes(d digest.Digest) []string {
	found := c.keys(homes, string(d)+"@", 100)
	for i, k := range found {
		found[i] = strings.TrimPrefix(k, string(d)+"@")
	}
	return found
}

// Possesses reports whether a host has shown to have the bytes of d.
func (c *Catalog) Possesses(host string, d digest.Digest) bool {
	return c.get(possessions, string(d)+"@"+host, new(struct{}))
}

// SetPossesses records that a host has shown to have the bytes of d.
func (c *Catalog) SetPossesses(host string, d digest.Digest) error {
	return c.put(entry{possessions, string(d) + "@" + host, struct{}{}})
}

// derivation is what is derived from a blob.
type derivation struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// Derived returns the object of a kind that was derived from a blob.
func (c *Catalog) Derived(kind string, blob digest.Digest) (object digest.Digest, size int64, ok bool) {
	var d derivation
	ok = c.get(derived, kind+":"+string(blob), &d)
	return d.Digest, d.Size, ok && d.Digest.Validate() == nil && d.Size >= 0
}

// SetDerived records an object that was derived from a blob.
func (c *Catalog) SetDerived(kind string, blob, object digest.Digest, size int64) error {
	return c.put(entry{derived, kind + ":" + string(blob), derivation{object, size}})
}

// Origins returns where a content was read, a hundred at most.
func (c *Catalog) Origins(content digest.Digest) []string {
	found := c.keys(origins, string(content)+"@", 100)
	for i, k := range found {
		found[i] = strings.TrimPrefix(k, string(content)+"@")
	}
	return found
}

// AddOrigin records where a content was read.
func (c *Catalog) AddOrigin(content digest.Digest, origin string) error {
	key := string(content) + "@" + origin
	if c.get(origins, key, new(struct{})) {
		return nil
	}
	return c.put(entry{origins, key, struct{}{}})
}

// Records are JSON values by key.
type Records struct{ catalog *Catalog }

// Access returns the records of who was served.
func (c *Catalog) Access() Records { return Records{c} }

// Get decodes the record of key into value, and reports whether there is one.
func (r Records) Get(key string, value any) bool { return r.catalog.get(access, key, value) }

// Put stores a record.
func (r Records) Put(key string, value any) error { return r.catalog.put(entry{access, key, value}) }

// Delete removes a record, if there is one, from the file too: what was taken
// away must not come back after a crash.
func (r Records) Delete(key string) error {
	var old any
	if !r.Get(key, &old) {
		return nil
	}
	if err := r.catalog.put(entry{access, key, nil}); err != nil || r.catalog.db == nil {
		return err
	}
	return r.catalog.write()
}

// AllTags returns what tags of all repositories were last resolved to, by repository:tag, at
// most n of them.
func (c *Catalog) AllTags(n int) map[string]Tag {
	found := make(map[string]Tag)
	c.scan(tags, func(k string, p []byte) bool {
		var t Tag
		if json.Unmarshal(p, &t) == nil && t.Digest.Validate() == nil {
			found[k] = t
		}
		return len(found) < n
	})
	return found
}

// Manifests returns the manifests that belong to repositories, at most n of them.
func (c *Catalog) Manifests(n int) map[digest.Digest][]string {
	found, count := make(map[digest.Digest][]string), 0
	c.scan(members, func(k string, p []byte) bool {
		var m Member
		repository, d, _ := strings.Cut(k, "@")
		// Most members are blobs, and need not be decoded to tell.
		if bytes.Contains(p, []byte(`"manifest":true`)) && json.Unmarshal(p, &m) == nil && m.Manifest {
			found[digest.Digest(d)] = append(found[digest.Digest(d)], repository)
			count++
		}
		return count < n
	})
	return found
}
