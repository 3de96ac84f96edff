package compat_test

import (
	"fmt"
	"testing/fstest"

	"github.com/granary-oci/granary/proxy/compat"
)

// An image that asks for more than a machine has.
func Example() {
	machine := fstest.MapFS{
		"proc/cpuinfo":              {Data: []byte("vendor_id : GenuineIntel\nflags : sse4_2 avx2\n")},
		"proc/sys/kernel/osrelease": {Data: []byte("6.1.0-18-amd64\n")},
	} // os.DirFS("/") is this one
	asks, err := compat.ParseBlob([]byte(`{"compatibilities":[
		{"oci.cpu.features": "AVX2, AVX512FP16", "oci.os.kernel": ">=5.15", "tags": "fast"},
		{"oci.cpu.features": "SSE4.2", "tags": "any"}
	]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	all := asks.Judge(compat.ReadHost(machine))
	for _, j := range all {
		fmt.Println(j.Tags, j.Verdict, j.Met, j.Unmet)
	}
	fmt.Println("best:", compat.Best(all).Tags)
	// Output:
	// [fast] does not suit 1 [needs AVX512FP16, which this CPU has not]
	// [any] suits 1 []
	// best: [any]
}
