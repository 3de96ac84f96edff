package parent

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPace is of the time in which something is awaited, and of what came last.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		run := func(n int64, d time.Duration) {
			defer p.begin()()
			for range 10 {
				time.Sleep(d / 10)
				p.came(n / 10)
			}
		}
		about := func(want int64) {
			t.Helper()
			if got := p.rate(); got < want*9/10 || got > want*11/10 {
				t.Errorf("%d bytes per second, want about %d", got, want)
			}
		}
		run(100_000, time.Second)
		if p.rate() != 0 {
			t.Errorf("%d bytes per second, by too little", p.rate())
		}
		time.Sleep(time.Hour)
		run(1_000_000, 10*time.Second)
		about(100_000)
		end := p.begin() // two at a time are not slower than one
		run(1_000_000, 10*time.Second)
		end()
		about(100_000)
		for range 10 {
			run(10_000_000, 10*time.Second)
		}
		about(1_000_000)
	})
}
