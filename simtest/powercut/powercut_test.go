package powercut_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/granary-oci/granary/simtest/powercut"
)

// record mounts a recording file system, or skips.
func record(t *testing.T) (*powercut.Recording, string) {
	t.Helper()
	mnt := t.TempDir()
	r, err := powercut.Record(t.TempDir(), mnt)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("FUSE cannot be mounted here: %v", err)
	}
	t.Cleanup(r.Discard)
	return r, mnt
}

func unmount(t *testing.T, r *powercut.Recording) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSyncedIsThereAndTheRestIsLuck(t *testing.T) {
	r, mnt := record(t)
	a, b := bytes.Repeat([]byte("a"), 8<<10), bytes.Repeat([]byte("b"), 8<<10)
	f, err := os.Create(filepath.Join(mnt, "f"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{a, b} {
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
		if p[0] == 'a' {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	unmount(t, r)
	seen := make(map[int]int) // how many pages of b are there
	for seed := range uint64(200) {
		dir := t.TempDir()
		if err := r.Rebuild(dir, r.Len(), rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		p, err := os.ReadFile(filepath.Join(dir, "f"))
		if err != nil || !bytes.HasPrefix(p, a) {
			t.Fatalf("seed %d: what was synced is not there: %v", seed, err)
		}
		seen[bytes.Count(p, b[:4096])]++
	}
	if len(seen) != 3 {
		t.Errorf("pages of the unsynced write that were there, by count: %v; want none, one and both", seen)
	}
}

func TestANameWithoutASyncMayBeLost(t *testing.T) {
	r, mnt := record(t)
	if err := os.WriteFile(filepath.Join(mnt, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount(t, r)
	lost := 0
	for seed := range uint64(100) {
		dir := t.TempDir()
		if err := r.Rebuild(dir, r.Len(), rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
			lost++
		}
	}
	if lost == 0 || lost == 100 {
		t.Errorf("the file was lost %d times of 100", lost)
	}
}

const transactions = 60

// TestMain is also the program that TestBbolt runs.
func TestMain(m *testing.M) {
	if dir := os.Getenv("POWERCUT_DIR"); dir != "" {
		if err := commitTransactions(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// commitTransactions prints a line after the database is made and after each
// commit, and waits for it to be answered.
func commitTransactions(dir string) error {
	db, err := bbolt.Open(filepath.Join(dir, "db"), 0o600, nil)
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err == nil {
		err = d.Sync()
	}
	if err != nil {
		return err
	}
	answers := bufio.NewReader(os.Stdin)
	mark := func() error {
		fmt.Println("mark")
		_, err := answers.ReadString('\n')
		return err
	}
	if err := mark(); err != nil {
		return err
	}
	for i := range transactions {
		err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return b.Put(binary.BigEndian.AppendUint32(nil, uint32(i)), bytes.Repeat([]byte{byte(i)}, 700))
		})
		if err == nil {
			err = mark()
		}
		if err != nil {
			return err
		}
	}
	return db.Close()
}

// TestBbolt shows that the model is one under which a database that is known to
// survive power cuts does.
func TestBbolt(t *testing.T) {
	r, mnt := record(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "POWERCUT_DIR="+mnt)
	cmd.Stderr = os.Stderr
	marks, err := r.Run(cmd)
	unmount(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if len(marks) != transactions+1 {
		t.Fatalf("%d marks", len(marks))
	}
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 1))
		cut := marks[0] + rng.IntN(r.Len()-marks[0]+1)
		dir := t.TempDir()
		if err := r.Rebuild(dir, cut, rng); err != nil {
			t.Fatal(err)
		}
		want := 0
		for want < transactions && marks[want+1] <= cut {
			want++
		}
		if got := count(t, filepath.Join(dir, "db")); got < want {
			t.Errorf("seed %d: %d transactions are there, %d had been committed", seed, got, want)
		}
	}
}

// count checks a database and returns how many transactions are in it, which
// must be the first ones.
func count(t *testing.T, file string) (n int) {
	t.Helper()
	db, err := bbolt.Open(file, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		b := tx.Bucket([]byte("b"))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, _ []byte) error {
			if int(binary.BigEndian.Uint32(k)) != n {
				t.Errorf("transaction %d is missing", n)
			}
			n++
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestAMistakeIsSeen lets a program vouch for data before it is synced.
func TestAMistakeIsSeen(t *testing.T) {
	r, mnt := record(t)
	data, err := os.Create(filepath.Join(mnt, "data"))
	if err != nil {
		t.Fatal(err)
	}
	note, err := os.Create(filepath.Join(mnt, "note"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { _, err := data.Write([]byte("data")); return err },
		func() error { _, err := note.Write([]byte("data is there")); return err },
		note.Sync, data.Close, note.Close,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	unmount(t, r)
	for seed := range uint64(100) {
		dir := t.TempDir()
		if err := r.Rebuild(dir, r.Len(), rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		n, _ := os.ReadFile(filepath.Join(dir, "note"))
		d, _ := os.ReadFile(filepath.Join(dir, "data"))
		if len(n) > 0 && string(d) != "data" {
			return // seen
		}
	}
	t.Error("in 100 power cuts the note never outlived the data")
}
