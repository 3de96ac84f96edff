package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// keepDerived removes all that a node has stored and learned, but for what it has derived
// from layers, of the kinds that begin with one of those named. The node must not run.
// What its directory looks like is in ARCHITECTURE.md, "On disk".
func keepDerived(dir string, kinds ...string) error {
	for _, name := range []string{"blobs", "index.db", "claims.json"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	kept, err := forget(filepath.Join(dir, "catalog.db"), kinds)
	if err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(dir, "contents", "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || kept[filepath.Base(path)] {
			return err
		}
		return os.Remove(path)
	})
}

// forget empties a catalog but for what was derived, of some kinds, and returns the names
// of the files that have it.
func forget(catalog string, kinds []string) (kept map[string]bool, err error) {
	db, err := bbolt.Open(catalog, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	kept = make(map[string]bool)
	return kept, db.Update(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(bucket []byte, b *bbolt.Bucket) error {
			var others [][]byte
			err := b.ForEach(func(k, v []byte) error {
				var object struct {
					Digest digest.Digest `json:"digest"`
				}
				if string(bucket) != "derived" || !slices.ContainsFunc(kinds, func(kind string) bool { return strings.HasPrefix(string(k), kind) }) {
					others = append(others, bytes.Clone(k))
					return nil
				}
				if err := json.Unmarshal(v, &object); err != nil {
					return err
				}
				kept[object.Digest.Encoded()] = true
				return nil
			})
			for _, k := range others {
				if err == nil {
					err = b.Delete(k)
				}
			}
			return err
		})
	})
}
