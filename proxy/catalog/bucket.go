package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"
)

// The buckets, and how many entries each may have. Above that another entry
// makes room: what is lost is asked of the upstream again.
const (
	access  = "access"  // as the user of [Catalog.Access] has it
	tags    = "tags"    // repository:tag → Tag
	members = "members" // repository@digest → Member
	homes   = "homes"   // digest@repository → nothing, for confirmed members

	possessions = "possessions" // digest@host → nothing
)

var limits = map[string]int{access: 1 << 17, tags: 1 << 18, members: 1 << 20, homes: 1 << 20, possessions: 1 << 20}

// inMemory divides the limits of a catalog without a file.
const inMemory = 16

type entry struct {
	bucket, key string
	value       any // nil removes the key
}

// get decodes what is stored under key. What does not decode is not there.
func (c *Catalog) get(bucket, key string, value any) bool {
	var p []byte
	if c.db == nil {
		c.mu.Lock()
		p = c.memory[bucket][key]
		c.mu.Unlock()
	} else if err := c.db.View(func(tx *bbolt.Tx) error {
		p = append(p, tx.Bucket([]byte(bucket)).Get([]byte(key))...)
		return nil
	}); err != nil {
		return false
	}
	return p != nil && json.Unmarshal(p, value) == nil
}

// keys returns at most n keys of a bucket that begin with prefix.
func (c *Catalog) keys(bucket, prefix string, n int) (found []string) {
	if c.db == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		for k := range c.memory[bucket] {
			if strings.HasPrefix(k, prefix) && len(found) < n {
				found = append(found, k)
			}
		}
		return found
	}
	_ = c.db.View(func(tx *bbolt.Tx) error { // a closed catalog has no keys
		cursor := tx.Bucket([]byte(bucket)).Cursor()
		for k, _ := cursor.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)) && len(found) < n; k, _ = cursor.Next() {
			found = append(found, string(k))
		}
		return nil
	})
	return found
}

// put stores and removes entries, all or none of them.
func (c *Catalog) put(entries ...entry) error {
	if len(entries) == 0 {
		return nil
	}
	values := make([][]byte, len(entries))
	var errs []error
	for i, e := range entries {
		if e.value != nil {
			p, err := json.Marshal(e.value)
			values[i], errs = p, append(errs, err)
		}
	}
	err := errors.Join(errs...)
	if err == nil {
		if c.db == nil {
			c.putMemory(entries, values)
		} else {
			err = c.putFile(entries, values)
		}
	}
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	return nil
}

func (c *Catalog) putFile(entries []entry, values [][]byte) error {
	var made map[string]int // set anew each time: the function may run more than once
	err := c.db.Batch(func(tx *bbolt.Tx) error {
		made = make(map[string]int)
		for i, e := range entries {
			n, err := c.putOne(tx.Bucket([]byte(e.bucket)), e, values[i])
			if err != nil {
				return err
			}
			made[e.bucket] += n
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range made {
		c.counts[name] += n
	}
	return nil
}

// putOne returns by how many entries the bucket has grown.
func (c *Catalog) putOne(b *bbolt.Bucket, e entry, value []byte) (int, error) {
	key, n := []byte(e.key), 0
	switch there := b.Get(key) != nil; {
	case value == nil && !there:
		return 0, nil
	case value == nil:
		return -1, b.Delete(key)
	case !there && c.full(e.bucket):
		if err := removeAfter(b, key); err != nil {
			return 0, err
		}
	case !there:
		n = 1
	}
	return n, b.Put(key, value)
}

func (c *Catalog) full(bucket string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[bucket] >= limits[bucket]
}

// removeAfter removes the entry that follows key, around the end: keys of
// repositories and digests have no order that clients could use.
func removeAfter(b *bbolt.Bucket, key []byte) error {
	cursor := b.Cursor()
	k, _ := cursor.Seek(key)
	if k == nil {
		k, _ = cursor.First()
	}
	if k == nil {
		return nil
	}
	return cursor.Delete()
}

func (c *Catalog) putMemory(entries []entry, values [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range entries {
		m := c.memory[e.bucket]
		delete(m, e.key)
		if values[i] == nil {
			continue
		}
		for k := range m {
			if len(m) < limits[e.bucket]/inMemory {
				break
			}
			delete(m, k)
		}
		m[strings.Clone(e.key)] = values[i]
	}
}
