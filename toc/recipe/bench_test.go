package recipe

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// tarball is the tar that GRANARY_BENCH_TAR names, or one that is made up.
func tarball(b *testing.B) []byte {
	b.Helper()
	name := os.Getenv("GRANARY_BENCH_TAR")
	if name == "" {
		return sample(4 << 20)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func used(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// perCPU reports how many MB of tar a second of CPU is enough for, whatever else runs on the machine.
func perCPU(b *testing.B, tar []byte, do func() error) {
	before, n := used(b), 0
	for b.Loop() {
		if err := do(); err != nil {
			b.Fatal(err)
		}
		n += len(tar)
	}
	b.ReportMetric(float64(n)/1e6/(used(b)-before).Seconds(), "MB/cpu-s")
}

// Benchmark measures each family at the level that is used most.
func Benchmark(b *testing.B) {
	tar := tarball(b)
	for _, e := range []Encoder{{Go, 6}, {Go, 1}, {Klauspost, 5}, {Klauspost117, 5}, {Pgzip, 5}, {Pgzip117, 5}} {
		blob := packed(b, e, tar, len(tar))
		r := found(b, blob)
		b.Run("find/"+e.String(), func(b *testing.B) {
			perCPU(b, tar, func() error { _, err := find(blob); return err })
		})
		b.Run("rebuild/"+e.String(), func(b *testing.B) {
			perCPU(b, tar, func() error { return r.Rebuild(b.Context(), io.Discard, bytes.NewReader(tar)) })
		})
	}
	none := golden(b, "gzip.tar.gz")
	b.Run("find/none", func(b *testing.B) {
		for b.Loop() {
			if _, err := find(none); err == nil {
				b.Fatal("it was found")
			}
		}
	})
}
