package chunkstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
	"github.com/granary-oci/granary/simtest/powercut"
)

// The environment by which this test's binary becomes the program that is
// killed, or that works on a disk whose power will fail.
const (
	crashDir    = "CHUNKSTORE_CRASH_DIR"
	shareDir    = "CHUNKSTORE_SHARE_DIR"
	crashSeed   = "CHUNKSTORE_CRASH_SEED"
	powerCutDir = "CHUNKSTORE_POWERCUT_DIR"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv(crashDir) != "":
		err = workUntilKilled(os.Getenv(crashDir), os.Getenv(crashSeed))
	case os.Getenv(shareDir) != "":
		err = shareUntilKilled(os.Getenv(shareDir), os.Getenv(crashSeed))
	case os.Getenv(powerCutDir) != "":
		err = workAndMark(os.Getenv(powerCutDir))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// universe is the blobs that the programs work on.
func universe(t testing.TB) []storetest.Blob {
	var blobs []storetest.Blob
	for i, n := range []int{300, 4097, chunk.Size, chunk.Size + 1, 2*chunk.Size + chunk.Size/2, 3 * chunk.Size, 70_000, 1} {
		blobs = append(blobs, storetest.NewBlob(t, digest.SHA256, n, uint64(900+i)))
	}
	return blobs
}

// workUntilKilled does all that a store is used for, in an order that seed
// decides, for a few seconds at most.
func workUntilKilled(dir, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	s, err := chunkstore.Open(dir, chunkstore.Config{Budget: 6 << 20, SyncEvery: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	blobs := universe(new(testing.B))
	rng := rand.New(rand.NewPCG(n, 0))
	fmt.Println("working")
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		b := blobs[rng.IntN(len(blobs))]
		switch rng.IntN(6) {
		case 0: // in order, and so proven
			src := chunk.Cache(s, b, new(chunk.Flight), nil)
			err = chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 4 << 20, Proofs: s}).Prove(context.Background())
		case 1:
			err = s.Sync()
		case 2:
			s.Refute(b.Blob())
		default:
			i := rng.IntN(b.Len())
			err = s.Put(context.Background(), b.At(i), b.Chunk(i))
		}
		if err != nil && !errors.Is(err, chunkstore.ErrFull) {
			return err
		}
	}
	return nil
}

// TestKilledAHundredTimes kills the program at random points, always on the same
// directory, and reads everything after each.
func TestKilledAHundredTimes(t *testing.T) {
	dir := t.TempDir()
	blobs := universe(t)
	kept := 0
	kill(t, 100, crashDir+"="+dir, func() { kept += checkAll(t, dir, blobs, nil) })
	if kept == 0 {
		t.Error("in 100 rounds nothing was kept: the test tests nothing")
	}
}

// kill kills the program that environment makes of this one, in each round, and then looks.
func kill(t *testing.T, rounds int, environment string, look func()) {
	t.Helper()
	rng := rand.New(rand.NewPCG(42, 0))
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), environment, crashSeed+"="+strconv.Itoa(round))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("round %d: the program did not start: %v", round, err)
		}
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		look()
	}
}

// checkAll opens a store and reads everything, alone and as a cache. must names
// chunks that have to be there. It returns how many were.
func checkAll(t *testing.T, dir string, blobs []storetest.Blob, must []chunk.Key) (kept int) {
	t.Helper()
	s, err := chunkstore.Open(dir, chunkstore.Config{SyncEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[chunk.Key]bool)
	for _, b := range blobs {
		for i := range b.Len() {
			if has(t, s, b, i) {
				there[b.At(i).Key()] = true
			}
		}
	}
	for _, k := range must {
		if !there[k] {
			t.Errorf("blob %s at %d was synced and is gone", k.Blob, k.Offset)
		}
	}
	for _, b := range blobs {
		read(t, s, b, b, nil)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return len(there)
}

// script is the chunks that workAndMark puts, in order; it syncs and marks after
// each group.
func script(t testing.TB) (groups [][]chunk.Ref, blobs []storetest.Blob) {
	blobs = universe(t)
	var all []chunk.Ref
	for _, b := range blobs {
		for i := range b.Len() {
			all = append(all, b.At(i))
		}
	}
	rand.New(rand.NewPCG(7, 7)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for len(all) > 0 {
		n := min(2, len(all))
		groups = append(groups, all[:n])
		all = all[n:]
	}
	return groups, blobs
}

func workAndMark(dir string) error {
	groups, blobs := script(new(testing.B))
	s, err := chunkstore.Open(dir, chunkstore.Config{SyncEvery: 3 * time.Millisecond})
	if err != nil {
		return err
	}
	answers := bufio.NewReader(os.Stdin)
	for n, group := range groups {
		for _, ref := range group {
			for _, b := range blobs {
				if b.Blob() != ref.Blob {
					continue
				}
				if err := s.Put(context.Background(), ref, b.Chunk(ref.Index())); err != nil {
					return err
				}
				if n%2 == 0 { // what is there of it is hashed, and linked
					src := chunk.Cache(s, nothing{}, new(chunk.Flight), nil)
					_ = chunk.NewBlob(b.Map, src, chunk.BlobConfig{Proofs: s}).Prove(context.Background())
				}
			}
		}
		if err := s.Sync(); err != nil {
			return err
		}
		fmt.Println("mark")
		if _, err := answers.ReadString('\n'); err != nil {
			return err
		}
	}
	return s.Close()
}

type nothing struct{}

func (nothing) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound }

// TestPowerCuts lets the power fail at 200 random points of the program's work:
// no wrong byte is served afterwards, and what Sync had vouched for is there.
func TestPowerCuts(t *testing.T) {
	mnt := t.TempDir()
	r, err := powercut.Record(t.TempDir(), mnt)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("FUSE cannot be mounted here: %v", err)
	}
	defer r.Discard()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), powerCutDir+"="+filepath.Join(mnt, "store"))
	cmd.Stderr = os.Stderr
	marks, err := r.Run(cmd)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		t.Fatal(err)
	}
	groups, blobs := script(t)
	if len(marks) != len(groups) {
		t.Fatalf("%d marks of %d", len(marks), len(groups))
	}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 3))
		cut := rng.IntN(r.Len() + 1)
		dir, err := os.MkdirTemp("", "powercut-")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Rebuild(dir, cut, rng); err != nil {
			t.Fatal(err)
		}
		var must []chunk.Key
		for i, group := range groups {
			for _, ref := range group {
				if marks[i] <= cut {
					must = append(must, ref.Key())
				}
			}
		}
		checkAll(t, filepath.Join(dir, "store"), blobs, must)
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Fatalf("seed %d, cut after %d of %d operations", seed, cut, r.Len())
		}
	}
}

// smallDisk is a file system of n bytes.
func smallDisk(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("granary-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", n)); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestAFullDiskFailsNoRead(t *testing.T) {
	dir := smallDisk(t, 5<<20)
	var f faults
	s := open(t, filepath.Join(dir, "store"), chunkstore.Config{Report: f.report})
	blobs := []storetest.Blob{storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 1), storetest.NewBlob(t, digest.SHA256, 6*chunk.Size, 2)}
	for range 2 {
		for _, b := range blobs {
			read(t, s, b, b, f.report)
		}
	}
	full := 0
	for _, err := range f.list() {
		if errors.Is(err, syscall.ENOSPC) {
			full++
		}
	}
	if full == 0 {
		t.Errorf("nothing was reported of a full disk: %v", f.list())
	}
	_ = s.Sync() // what is being written is counted until it is known not to have been
	if u := s.Usage(); u.Bytes > 5<<20 {
		t.Errorf("%d bytes are counted on a disk of 5 MiB", u.Bytes)
	}
}

func TestADiskThatTurnsReadOnlyFailsNoRead(t *testing.T) {
	dir := smallDisk(t, 32<<20)
	var f faults
	s := open(t, filepath.Join(dir, "store"), chunkstore.Config{Report: f.report, SyncEvery: time.Hour})
	a, b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 1), storetest.NewBlob(t, digest.SHA256, 2*chunk.Size, 2)
	read(t, s, a, a, f.report)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	// The index is open for writing, which a read-only mount would not allow;
	// folders that nothing can be made in are what a new blob meets.
	if err := os.RemoveAll(filepath.Join(dir, "store/blobs/sha256", b.Blob().Encoded()[:2])); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "store/blobs/sha256", b.Blob().Encoded()[:2]), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		read(t, s, a, nothing{}, f.report)
		read(t, s, b, b, f.report)
	}
	if f.count() == 0 {
		t.Error("nothing was reported")
	}
}
