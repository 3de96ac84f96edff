// Package catalog remembers what a node has learned of repositories: whether a
// repository is public, what a tag was last resolved to, and which digests
// belong to a repository. It survives restarts, so that a node whose upstream is
// unreachable can answer what it has answered before. It decides nothing: how
// long a fact holds is for its readers to say.
package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// Visibility is what was last learned of who may read a repository.
type Visibility struct {
	Public  bool      `json:"public"`  // the upstream served it to an anonymous client
	Checked time.Time `json:"checked"` // when the upstream last said so
}

// Member is a digest that belongs to a repository: the upstream served it there,
// or a manifest of the repository names it.
type Member struct {
	MediaType string `json:"mediaType,omitempty"` // as pushed or as the manifest says; "" if unknown
	Size      int64  `json:"size"`                // in bytes
	Manifest  bool   `json:"manifest,omitempty"`  // it was served as a manifest
}

// Tag is what a tag was last resolved to.
type Tag struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	Checked   time.Time     `json:"checked"` // when the upstream last said so
}

// Limits of a catalog. Above them an arbitrary older entry makes room: what is
// lost is asked of the upstream again.
const (
	maxRepositories = 1 << 16
	maxTags         = 1 << 18
	maxMembers      = 1 << 20
)

var (
	repositories = []byte("repositories") // repository → Visibility
	tags         = []byte("tags")         // repository:tag → Tag
	members      = []byte("members")      // repository@digest → Member

	limits = map[string]int{string(repositories): maxRepositories, string(tags): maxTags, string(members): maxMembers}
)

// Catalog is safe for concurrent use.
type Catalog struct {
	db *bbolt.DB

	mu     sync.Mutex
	counts map[string]int               // entries by bucket
	memory map[string]map[string][]byte // by bucket; used when db is nil
}

// Open opens the catalog in the file at path, made if it is not there. A file
// that cannot be read as one is an error; it is the caller's to set it aside.
func Open(path string) (c *Catalog, err error) {
	defer func() {
		if r := recover(); r != nil { // so bbolt answers a damaged page
			c, err = nil, fmt.Errorf("catalog %s: damaged: %v", path, r)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("catalog %s: %w", path, err)
	}
	c = &Catalog{db: db, counts: make(map[string]int)}
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
	return c, nil
}

// NewMemory returns a catalog that forgets everything with the process.
func NewMemory() *Catalog {
	c := &Catalog{counts: make(map[string]int), memory: make(map[string]map[string][]byte)}
	for name := range limits {
		c.memory[name] = make(map[string][]byte)
	}
	return c
}

// Close closes the catalog.
func (c *Catalog) Close() error {
	if c.db == nil {
		return nil
	}
	return c.db.Close()
}

// Visibility returns what is known of repository, given as host/name.
func (c *Catalog) Visibility(repository string) (v Visibility, ok bool) {
	ok = c.get(repositories, repository, &v)
	return v, ok
}

// SetVisibility records who may read repository.
func (c *Catalog) SetVisibility(repository string, v Visibility) error {
	return c.put(entry{repositories, repository, v})
}

// Tag returns what a tag of repository was last resolved to.
func (c *Catalog) Tag(repository, tag string) (t Tag, ok bool) {
	ok = c.get(tags, repository+":"+tag, &t)
	return t, ok && t.Digest.Validate() == nil && t.Size >= 0
}

// SetTag records what a tag of repository was resolved to.
func (c *Catalog) SetTag(repository, tag string, t Tag) error {
	return c.put(entry{tags, repository + ":" + tag, t})
}

// Member returns what is known of d in repository. ok is false when d is not
// known to belong there.
func (c *Catalog) Member(repository string, d digest.Digest) (m Member, ok bool) {
	ok = c.get(members, repository+"@"+string(d), &m)
	return m, ok && m.Size >= 0
}

// AddMembers records digests that belong to repository. What is known of a
// manifest is not replaced by what another manifest says of it.
func (c *Catalog) AddMembers(repository string, add map[digest.Digest]Member) error {
	var entries []entry
	for d, m := range add {
		old, ok := c.Member(repository, d)
		if ok && (old == m || old.Manifest && !m.Manifest) {
			continue
		}
		entries = append(entries, entry{members, repository + "@" + string(d), m})
	}
	return c.put(entries...)
}

type entry struct {
	bucket []byte
	key    string
	value  any
}

// get decodes what is stored under key. What does not decode is not there.
func (c *Catalog) get(bucket []byte, key string, value any) bool {
	var p []byte
	if c.db == nil {
		c.mu.Lock()
		p = c.memory[string(bucket)][key]
		c.mu.Unlock()
	} else if err := c.db.View(func(tx *bbolt.Tx) error {
		p = append(p, tx.Bucket(bucket).Get([]byte(key))...)
		return nil
	}); err != nil {
		return false
	}
	return p != nil && json.Unmarshal(p, value) == nil
}

func (c *Catalog) put(entries ...entry) error {
	if len(entries) == 0 {
		return nil
	}
	if c.db == nil {
		return c.putMemory(entries)
	}
	var made map[string]int // the function may run more than once
	err := c.db.Batch(func(tx *bbolt.Tx) error {
		made = make(map[string]int)
		for _, e := range entries {
			p, err := json.Marshal(e.value)
			if err != nil {
				return err
			}
			b := tx.Bucket(e.bucket)
			if b.Get([]byte(e.key)) == nil {
				made[string(e.bucket)]++
				if c.full(e.bucket) {
					made[string(e.bucket)]--
					if err := removeAfter(b, e.key); err != nil {
						return err
					}
				}
			}
			if err := b.Put([]byte(e.key), p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range made {
		c.counts[name] += n
	}
	return nil
}

func (c *Catalog) full(bucket []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[string(bucket)] >= limits[string(bucket)]
}

// removeAfter removes the entry that follows key, around the end: keys of
// repositories and digests have no order that clients could use.
func removeAfter(b *bbolt.Bucket, key string) error {
	cursor := b.Cursor()
	k, _ := cursor.Seek([]byte(key))
	if k == nil {
		k, _ = cursor.First()
	}
	if k == nil {
		return nil
	}
	return cursor.Delete()
}

func (c *Catalog) putMemory(entries []entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, e := range entries {
		p, err := json.Marshal(e.value)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m := c.memory[string(e.bucket)]
		for k := range m {
			if len(m) < limits[string(e.bucket)] {
				break
			}
			delete(m, k)
		}
		m[strings.Clone(e.key)] = p
	}
	return errors.Join(errs...)
}
