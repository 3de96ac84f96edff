package compat_test

import (
	"testing"
	"testing/fstest"

	"github.com/granary-oci/granary/proxy/compat"
)

// check judges by a document that was read: no condition may be lost on the way, and what is
// not known must not pass.
func check(t *testing.T, d *compat.Document, h *compat.Host) {
	all := d.Judge(h)
	for _, j := range all {
		switch {
		case (j.Verdict == compat.Suits) != (len(j.Unmet)+len(j.Unjudged) == 0), (j.Verdict == compat.Unsuited) != (len(j.Unmet) > 0):
			t.Errorf("%+v", j)
		}
	}
	for _, j := range all {
		if best := compat.Best(all); best.Verdict != compat.Suits && j.Verdict == compat.Suits {
			t.Errorf("the best of %+v is %+v", all, best)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(golden(f, "proposal-i.json")))
	f.Add([]byte(`{"config":{"compatibilities":[{"oci.os.kernel":">=5, !=6.1","oci.pci.devices":["1.2"],"x":{}}]}}`))
	h := host(f, "xeon")
	f.Fuzz(func(t *testing.T, p []byte) {
		if d, err := compat.ParseConfig(p); err == nil {
			check(t, d, h)
		}
	})
}

func FuzzParseBlob(f *testing.F) {
	f.Add([]byte(golden(f, "proposal-j.json")))
	f.Add([]byte(`{"compatibilities":[{},{"oci.cpu.features":[],"tags":null,"description":1},null]}`))
	h := host(f, "graviton")
	f.Fuzz(func(t *testing.T, p []byte) {
		if d, err := compat.ParseBlob(p); err == nil {
			check(t, d, h)
		}
	})
}

func FuzzParseNFD(f *testing.F) {
	f.Add([]byte(golden(f, "nfd.yaml")))
	f.Add([]byte(terms("{feature: pci.device, matchName: {op: InRegexp, value: ['^c']}, matchExpressions: {class: {op: GtLt, value: [1, 2]}, x: }}")))
	f.Add([]byte("version: v1alpha1\ncompatibilities: [{rules: [&r {matchAny: [{}], ? [a] : b}, *r], weight: 1}]"))
	h := host(f, "xeon")
	f.Fuzz(func(t *testing.T, p []byte) {
		if d, err := compat.ParseNFD(p); err == nil {
			check(t, d, h)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"platform":{"os":"linux","compat":{"mediaType":"m","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":5}}},{}]}`))
	f.Add([]byte(`{"manifests":[null,{"platform":{"compat":[],"compatibilities":7}}]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		entries, err := compat.ParseIndex(p)
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.Malformed && e.Compat != nil || e.Compat != nil && e.Compat.Digest.Validate() != nil {
				t.Errorf("%+v", e)
			}
		}
	})
}

// FuzzReadHost: a machine may show what it likes.
func FuzzReadHost(f *testing.F) {
	f.Add("6.1.0", []byte("flags : a b\nflags\t: b\nvendor_id:x"), []byte("ID=\"x\"\nVERSION_ID='1.2'\n#a=b"), []byte("0x15B3\n"))
	f.Add("../..", []byte(":"), []byte("="), []byte("0x"))
	f.Fuzz(func(t *testing.T, release string, cpuinfo, osRelease, number []byte) {
		file := func(p []byte) *fstest.MapFile { return &fstest.MapFile{Data: p} }
		h := compat.ReadHost(fstest.MapFS{
			"proc/sys/kernel/osrelease": file([]byte(release)), "proc/cpuinfo": file(cpuinfo), "etc/os-release": file(osRelease), "proc/config.gz": file(cpuinfo), "proc/modules": file(osRelease),
			"sys/bus/pci/devices/0/vendor": file(number), "sys/bus/pci/devices/0/device": file(number), "sys/bus/pci/devices/0/class": file(number),
		})
		d, err := compat.ParseNFD([]byte(golden(t, "nfd.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		check(t, d, h)
	})
}
