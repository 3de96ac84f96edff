package virtual

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
)

// long says that the large image is to be pulled, which takes minutes.
var long = os.Getenv("GRANARY_TEST_LONG") != ""

// A cold image leaves the registry once, however many nodes pull it at once.
func TestColdImage(t *testing.T) {
	img := newImage(24*mib, 16*mib, 8*mib)
	if long {
		img = newImage(300*mib, 200*mib, 100*mib)
	}
	for name, l := range map[string]links{
		"fast": {registry: gigabit, node: gigabit},
		"thin": {registry: gigabit / 5, node: gigabit},
	} {
		for _, n := range sizes {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				simulate(t, func(t *testing.T) {
					c := newCluster(t, img, n, l)
					defer c.close()
					c.pull(c.nodes...)
					c.report("cold, registry " + name)
					c.mayHaveSent(1.05)
					c.mayHaveUploaded(4)
				})
			})
		}
	}
}

// simulate runs f in virtual time.
func simulate(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
