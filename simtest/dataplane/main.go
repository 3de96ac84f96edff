// Command dataplane measures how members move chunks, beside plain HTTPS:
//
//	go run ./simtest/dataplane [-size 1024] [-rounds 5] [-figures FILE]
//
// Two processes on loopback, one that has a blob and one that reads it, take turns at
// two ways: the lanes of a cluster (libp2p's TLS and yamux, with claims), and
// HTTPS/1.1 with ranges of a stripe on four connections. Either way the reader takes
// the SHA-256 of every chunk. The blob is read twice: the first time a member that
// lends a chunk hashes it too, to sign for it, and never again. It prints medians of
// the rate and of the CPU seconds that each end spends on a GiB, and how long
// requests of 4 KiB take one after the other.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

// result is what one end prints of one reading.
type result struct {
	Seconds  float64       `json:"seconds"` // wall time of the transfer
	CPU      float64       `json:"cpu"`     // seconds of user and system time
	P50, P99 time.Duration // of small requests
}

// pair is what both ends say of one reading.
type pair struct{ server, reader result }

func (p pair) cpu() float64 { return p.server.CPU + p.reader.CPU }

func main() {
	size := flag.Int64("size", 1024, "MiB of the blob")
	rounds := flag.Int("rounds", 5, "how often each way is taken")
	role := flag.String("role", "", "serve or read; by the program itself")
	way := flag.String("way", "", "p2p or https; by the program itself")
	file := flag.String("file", "", "by the program itself")
	address := flag.String("address", "", "by the program itself")
	told := figures.Flag(flag.CommandLine)
	flag.Parse()
	var err error
	switch *role {
	case "serve":
		err = serve(*way, *file)
	case "read":
		err = read(*way, *file, *address)
	default:
		err = measure(*size<<20, *rounds, told)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "dataplane:", err)
		os.Exit(1)
	}
}

// measure takes turns at the ways and prints medians.
func measure(size int64, rounds int, told *figures.Set) error {
	dir, err := os.MkdirTemp("", "granary-dataplane-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "blob")
	if err := writeBlob(file, size); err != nil {
		return err
	}
	all := make(map[string][]pair)
	for range rounds {
		for _, way := range []string{"https", "p2p"} {
			pairs, err := round(way, file)
			if err != nil {
				return fmt.Errorf("%s: %w", way, err)
			}
			for i, name := range readings[way] {
				all[name] = append(all[name], pairs[i])
			}
		}
	}
	print(all, size)
	tell(told, all, size)
	return told.Write()
}

// readings are the names of a way's first and second reading.
var readings = map[string][]string{"https": {"https", "https, again"}, "p2p": {"p2p", "p2p, again"}}

// round runs both ends of one way.
func round(way, file string) (pairs []pair, err error) {
	server, err := start("-role", "serve", "-way", way, "-file", file)
	if err != nil {
		return nil, err
	}
	defer server.kill()
	address, err := server.out.ReadString('\n')
	if err != nil {
		return nil, err
	}
	reader, err := start("-role", "read", "-way", way, "-file", file, "-address", strings.TrimSpace(address))
	if err != nil {
		return nil, err
	}
	defer reader.kill()
	for range readings[way] {
		var p pair
		if p.reader, err = reader.next(); err != nil {
			return nil, err
		}
		if p.server, err = server.next(); err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
	return pairs, nil
}

// end is a process that reads when it is sent a line, or says what it has spent since
// the line before.
type end struct {
	*exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func start(args ...string) (*end, error) {
	e := &end{Cmd: exec.Command(os.Args[0], args...)}
	e.Stderr = os.Stderr
	in, err := e.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := e.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.in, e.out = in, bufio.NewReader(out)
	return e, e.Start()
}

func (e *end) next() (r result, err error) {
	if _, err := fmt.Fprintln(e.in); err != nil {
		return r, err
	}
	line, err := e.out.ReadBytes('\n')
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(line, &r)
}

func (e *end) kill() { _ = e.Process.Kill(); _ = e.Wait() }

func print(all map[string][]pair, size int64) {
	gib := float64(size) / (1 << 30)
	fmt.Printf("%-14s %8s %16s %16s %8s %12s %12s\n", "way", "MB/s", "reader CPU s/GiB", "server CPU s/GiB", "sum", "4 KiB p50", "4 KiB p99")
	for _, name := range slices.Concat(readings["https"], readings["p2p"]) {
		of := func(f func(pair) float64) float64 { return median(all[name], f) }
		fmt.Printf("%-14s %8.0f %16.2f %16.2f %8.2f %12v %12v\n", name,
			of(func(p pair) float64 { return float64(size) / 1e6 / p.reader.Seconds }),
			of(func(p pair) float64 { return p.reader.CPU / gib }),
			of(func(p pair) float64 { return p.server.CPU / gib }),
			of(func(p pair) float64 { return p.cpu() / gib }),
			time.Duration(of(func(p pair) float64 { return float64(p.reader.P50) })),
			time.Duration(of(func(p pair) float64 { return float64(p.reader.P99) })))
	}
	for i, name := range readings["p2p"] {
		plain := all[readings["https"][i]]
		var ratios []float64
		for j, p := range all[name] {
			ratios = append(ratios, p.cpu()/plain[j].cpu())
		}
		slices.Sort(ratios)
		fmt.Printf("%s takes %.2f times the CPU of HTTPS/1.1 (%.2f to %.2f)\n", name, ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
	}
}

// tell adds the figures: the first reading of either way, and the second.
func tell(told *figures.Set, all map[string][]pair, size int64) {
	gib := float64(size) / (1 << 30)
	for i, when := range []string{"", ", again"} {
		what := fmt.Sprintf("a blob between two members, %d MiB%s", size>>20, when)
		rate, cpu := figures.Measurement{Name: what, Unit: "MB/s"}, figures.Measurement{Name: what, Unit: "CPU s/GiB"}
		small := figures.Measurement{Name: "4 KiB between two members, median" + when, Unit: "µs"}
		add := func(system string, pairs []pair) {
			for _, p := range pairs {
				told.Add(rate, system, float64(size)/1e6/p.reader.Seconds)
				told.Add(cpu, system, p.cpu()/gib)
				told.Add(small, system, float64(p.reader.P50)/1e3)
			}
		}
		add("granary", all[readings["p2p"][i]])
		add("HTTPS/1.1", all[readings["https"][i]])
		for _, m := range []figures.Measurement{rate, cpu, small} {
			told.Compare(m, "granary", "HTTPS/1.1")
		}
	}
}

func median(all []pair, f func(pair) float64) float64 {
	var values []float64
	for _, p := range all {
		values = append(values, f(p))
	}
	return figures.Median(values)
}

// spent returns the CPU seconds of this process so far.
func spent() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it does not fail for oneself
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
