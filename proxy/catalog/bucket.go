package catalog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// The buckets, and how many entries each may have. Above that another entry
// makes room: what is lost is asked of the upstream again.
const (
	access  = "access"  // as the user of [Catalog.Access] has it
	tags    = "tags"    // repository:tag → Tag
	members = "members" // repository@digest → Member
	homes   = "homes"   // digest@repository → nothing, for confirmed members

	imports = "imports" // digest → nothing, for imported members

	possessions = "possessions" // digest@host → nothing
	suppliers   = "suppliers"   // digest → host

	derived = "derived" // kind:digest → derivation
	origins = "origins" // digest@origin → nothing
)

var limits = map[string]int{
	access: 1 << 17, tags: 1 << 18, members: 1 << 20, homes: 1 << 20, imports: 1 << 20, possessions: 1 << 20, suppliers: 1 << 20,
	derived: 1 << 18, origins: 1 << 21,
}

// inMemory divides the limits for what is in memory.
const inMemory = 16

// writeEvery is how long facts gather before they are written together: a crash
// loses the last of them, which costs a question each.
const writeEvery = 50 * time.Millisecond

func newBuckets() map[string]map[string][]byte {
	all := make(map[string]map[string][]byte)
	for name := range limits {
		all[name] = make(map[string][]byte)
	}
	return all
}

type entry struct {
	bucket, key string
	value       any // nil removes the key
}

// get decodes what is stored under key. What does not decode is not there.
func (c *Catalog) get(bucket, key string, value any) bool {
	p, ok := c.unwritten(bucket, key)
	if !ok && c.db != nil {
		_ = c.db.View(func(tx *bbolt.Tx) error { // a closed catalog has nothing
			p = bytes.Clone(tx.Bucket([]byte(bucket)).Get([]byte(key)))
			return nil
		})
	}
	return p != nil && json.Unmarshal(p, value) == nil
}

// unwritten returns what is in memory under key: nil if it has been removed.
func (c *Catalog) unwritten(bucket, key string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.memory[bucket][key]; ok {
		return p, true
	}
	p, ok := c.writing[bucket][key]
	return p, ok
}

// keys returns at most n keys of a bucket that begin with prefix.
func (c *Catalog) keys(bucket, prefix string, n int) []string {
	found := make(map[string]bool)
	if c.db != nil {
		_ = c.db.View(func(tx *bbolt.Tx) error {
			cursor := tx.Bucket([]byte(bucket)).Cursor()
			for k, _ := cursor.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)) && len(found) < n; k, _ = cursor.Next() {
				found[string(k)] = true
			}
			return nil
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, newer := range []map[string][]byte{c.writing[bucket], c.memory[bucket]} {
		for k, p := range newer {
			if p == nil {
				delete(found, k)
			} else if strings.HasPrefix(k, prefix) && len(found) < n {
				found[k] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// scan calls yield with the entries of a bucket, in no order, until that returns false. What is
// yielded is good until yield returns.
func (c *Catalog) scan(bucket string, yield func(key string, value []byte) bool) {
	newer := make(map[string][]byte)
	c.mu.Lock()
	maps.Copy(newer, c.writing[bucket])
	maps.Copy(newer, c.memory[bucket])
	c.mu.Unlock()
	for k, p := range newer {
		if p != nil && !yield(k, p) {
			return
		}
	}
	if c.db == nil {
		return
	}
	_ = c.db.View(func(tx *bbolt.Tx) error { // a closed catalog has nothing
		cursor := tx.Bucket([]byte(bucket)).Cursor()
		for k, p := cursor.First(); k != nil; k, p = cursor.Next() {
			if _, known := newer[string(k)]; !known && !yield(string(k), p) {
				return nil
			}
		}
		return nil
	})
}

// put stores and removes entries in memory; the file follows.
func (c *Catalog) put(entries ...entry) error {
	for _, e := range entries {
		var p []byte
		if e.value != nil {
			var err error
			if p, err = json.Marshal(e.value); err != nil {
				return fmt.Errorf("catalog: %w", err)
			}
		}
		c.putOne(e.bucket, e.key, p)
	}
	if c.db == nil {
		return nil
	}
	select {
	case c.wake <- struct{}{}:
	default: // it has been woken
	}
	return nil
}

// putBack keeps what could not be written, above all removals, as far as there is
// room and nothing newer; c.mu is held.
func (c *Catalog) putBack() {
	for bucket, entries := range c.writing {
		for key, p := range entries {
			_, newer := c.memory[bucket][key]
			if !newer && (p == nil || len(c.memory[bucket]) < limits[bucket]/inMemory) {
				c.memory[bucket][key] = p
			}
		}
	}
}

func (c *Catalog) putOne(bucket, key string, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memory[bucket]
	if c.db == nil {
		delete(m, key)
		if p == nil {
			return
		}
	}
	for k := range m { // a file that cannot be written must not fill the memory
		if _, there := m[k]; len(m) < limits[bucket]/inMemory || there && k == key {
			break
		}
		delete(m, k)
	}
	m[strings.Clone(key)] = p
}

// writeLoop writes what is in memory to the file, until the catalog is closed.
func (c *Catalog) writeLoop() {
	defer close(c.done)
	for {
		select {
		case <-c.stop:
			return
		case <-c.wake:
		}
		if err := c.write(); err != nil {
			c.report(err)
		}
		select {
		case <-c.stop:
			return
		case <-time.After(writeEvery):
		}
	}
}

// write writes what is in memory to the file.
func (c *Catalog) write() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.mu.Lock()
	c.writing, c.memory = c.memory, newBuckets()
	c.mu.Unlock()
	made := make(map[string]int)
	err := c.db.Update(func(tx *bbolt.Tx) error {
		for bucket, entries := range c.writing {
			for key, p := range entries {
				n, err := c.writeOne(tx.Bucket([]byte(bucket)), bucket, []byte(key), p, made[bucket])
				if err != nil {
					return err
				}
				made[bucket] += n
			}
		}
		return nil
	})
	c.mu.Lock()
	if err != nil {
		c.putBack()
	}
	c.writing = nil
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	for name, n := range made {
		c.counts[name] += n
	}
	return nil
}

// writeOne returns by how many entries the bucket has grown, after it had grown
// by made.
func (c *Catalog) writeOne(b *bbolt.Bucket, bucket string, key, p []byte, made int) (int, error) {
	n := 0
	switch there := b.Get(key) != nil; {
	case p == nil && !there:
		return 0, nil
	case p == nil:
		return -1, b.Delete(key)
	case !there && c.counts[bucket]+made >= limits[bucket]:
		if err := removeAfter(b, key); err != nil {
			return 0, err
		}
	case !there:
		n = 1
	}
	return n, b.Put(key, p)
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
