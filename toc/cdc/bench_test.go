package cdc

import (
	"bytes"
	"os"
	"syscall"
	"testing"
)

// BenchmarkCut cuts the file that GRANARY_BENCH_TAR names, or noise, in memory, and hashes
// nothing.
func BenchmarkCut(b *testing.B) {
	p := tarOrNoise(b)
	before := processorTime(b)
	for b.Loop() {
		for rest := p; len(rest) > 0; {
			rest = rest[Cut(rest):]
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(p))/1e6/(processorTime(b)-before), "MB/cpu-s")
}

// BenchmarkOf makes the map of the same.
func BenchmarkOf(b *testing.B) {
	p := tarOrNoise(b)
	before := processorTime(b)
	for b.Loop() {
		if _, err := Of(b.Context(), bytes.NewReader(p)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(p))/1e6/(processorTime(b)-before), "MB/cpu-s")
}

func tarOrNoise(b *testing.B) []byte {
	b.Helper()
	name := os.Getenv("GRANARY_BENCH_TAR")
	if name == "" {
		return bytes.Repeat(noise(4<<20), 8)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// processorTime is how many seconds of it the process has had.
func processorTime(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
