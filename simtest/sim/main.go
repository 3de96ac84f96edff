// Command sim simulates clusters of sizes that no machine here has.
//
//	go run ./simtest/sim [-full] [-scenario 1,4] [-seed N] [-svg DIR] [-json] [-figures FILE]
//	go run ./simtest/sim -validate    (root)
//
// Nodes decide with the code that a node runs: the ranks of package tracker and what it
// remembers of providers, the pursuits, referrals and health of package p2p/decide, and the turns of
// package chunk's readers. All happens in one loop of events in virtual time, from a seed: the same seed
// gives the same result, to the byte and the nanosecond.
//
// # What is modelled
//
//   - Bytes are counted, in chunks. A host has a link each way, a zone has one to each other. Chunks take turns
//     at the sender's link, and queue at the others; few of one answer are under way. TCP is not there: no slow
//     start, and no window that is too small for the latency. Links have no headers.
//   - Messages (requests, referrals, progress, cancellations, announcements) take the latency and no bandwidth. One
//     that is lost comes 200 ms later, as TCP would send it again.
//   - What p2p's client and server do in goroutines around the decisions (errand.go, answer.go, own.go), a reader's
//     window and memory (node.go), and the registry, which shares its egress among who asks.
//   - Membership: a roster that each node sees some time after it has changed. The size of stripes is that of the members
//     there are at first. Gossip's own traffic is not there.
//   - A liar sends wrong bytes, which are found out where they arrive; nobody signs a wrong claim.
//   - Of a rolling update: a node that has the version before takes from it the chunks that are the same, once somebody has
//     announced the new one. Layers in gzip have none that are.
//   - A lazy start reads chunks, one after the other; the pieces of 64 KiB that a mount asks for are not there.
//
// There is no CPU and no disk: what they cost is measured elsewhere, on what there is, and what was stored for later is read at once. -validate compares a run of eight nodes with the
// same one of real processes (simtest/cluster).
//
// # What rows say
//
//	p50, p99, p99.9   virtual time until so many of the nodes had all
//	÷ bound           of p99 and max(image/egress, image/down-link, N × image/(all uplinks + egress))
//	registry          bytes that left it, in copies of the image, for each zone
//	uplink            of what all uplinks could have sent, and what the busiest node sent, in copies of the image
//	in vain           bytes that came twice, or wrong, as a share
//	messages          a node's, in and out, for each stripe of the image; and what the busiest has sent in all
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

// options are the command line.
type options struct {
	seed     uint64
	only     map[int]bool
	full     bool
	svg      string
	json     bool
	validate bool
	told     *figures.Set
}

func main() {
	o := options{only: make(map[int]bool), told: figures.Flag(flag.CommandLine)}
	flag.Uint64Var(&o.seed, "seed", 1, "of all that is left to chance")
	flag.Func("scenario", "numbers, as 1,4 (default all)", func(s string) error {
		for _, word := range strings.Split(s, ",") {
			n, err := strconv.Atoi(word)
			if err != nil || n < 1 || n > len(scenarios) {
				return fmt.Errorf("%q is none of 1 to %d", word, len(scenarios))
			}
			o.only[n] = true
		}
		return nil
	})
	flag.BoolVar(&o.full, "full", false, "the sizes that are published, which take 25 minutes on two processors and 13 GB of memory, in place of small ones")
	flag.StringVar(&o.svg, "svg", "", "directory that plots are written to")
	flag.BoolVar(&o.json, "json", false, "print results in JSON")
	flag.BoolVar(&o.validate, "validate", false, "compare with real processes in network namespaces, as root")
	flag.Parse()
	if err := o.run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func (o options) run(w io.Writer) error {
	if o.validate {
		return validate(w, o.seed)
	}
	if !o.json {
		fmt.Fprintf(w, "seed %d\n", o.seed)
	}
	began := time.Now()
	var told []report
	for _, s := range scenarios {
		if len(o.only) > 0 && !o.only[s.number] {
			continue
		}
		r := report{Seed: o.seed, Scenario: s.number, Title: s.title}
		if !o.json {
			r.header(w)
		}
		for row := range simulateAll(s.rows(o.full), o.seed) {
			r.Rows = append(r.Rows, row)
			if !o.json {
				row.print(w)
			}
		}
		told = append(told, r)
		r.tell(o.told)
		if o.svg != "" {
			if err := r.plot(o.svg, s.grows); err != nil {
				return err
			}
		}
	}
	if err := o.told.Write(); err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(w).Encode(told)
	}
	fmt.Fprintf(w, "\nall of it took %v\n", time.Since(began).Round(time.Second))
	return nil
}

// simulateAll gives the results of rows in their order, while as many are simulated as there are processors: they
// have nothing to do with each other.
func simulateAll(rows []row, seed uint64) iter.Seq[result] {
	var done []chan result
	for range rows {
		done = append(done, make(chan result, 1))
	}
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(rows)) {
		go func() {
			for i := next.Add(1) - 1; int(i) < len(rows); i = next.Add(1) - 1 {
				done[i] <- rows[i].run(seed)
			}
		}()
	}
	return func(yield func(result) bool) {
		for _, c := range done {
			if !yield(<-c) {
				return
			}
		}
	}
}

// large is held by a row that takes some 10 GB of memory: two of those at once would be too much for the machines that there are.
var large sync.Mutex

// run simulates a row.
func (r row) run(seed uint64) result {
	r.Seed = seed
	c := newCluster(r.setting)
	if r.Nodes*c.stripes() > 1e6 {
		large.Lock()
		defer large.Unlock()
	}
	r.do(c)
	return c.run(r.name)
}
