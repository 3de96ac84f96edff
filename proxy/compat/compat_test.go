package compat_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/granary-oci/granary/proxy/compat"
)

// tree is a machine's files, each after a line with its name: -- etc/os-release --.
func tree(text string) fstest.MapFS {
	files := make(fstest.MapFS)
	var name string
	for line := range strings.Lines(text) {
		if begins, ok := strings.CutPrefix(line, "-- "); ok {
			name = strings.TrimSuffix(begins, " --\n")
			files[name] = &fstest.MapFile{}
			continue
		}
		files[name].Data = append(files[name].Data, line...)
	}
	return files
}

// host is a machine of testdata; nothing is one that shows nothing.
func host(t testing.TB, name string) *compat.Host {
	t.Helper()
	if name == "nothing" {
		return compat.ReadHost(fstest.MapFS{})
	}
	return compat.ReadHost(tree(golden(t, "hosts/"+name+".txt")))
}

func golden(t testing.TB, name string) string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// told is a judgement as tests write it down.
func told(j compat.Judgement) string {
	return strings.TrimSuffix(fmt.Sprintf("%s, %d met: %s", j.Verdict, j.Met, strings.Join(append(j.Unmet, j.Unjudged...), "; ")), ": ")
}

// toldAll is what a host makes of a document's alternatives, a line each.
func toldAll(d *compat.Document, h *compat.Host) string {
	var lines []string
	for _, j := range d.Judge(h) {
		lines = append(lines, told(j))
	}
	return strings.Join(lines, "\n")
}

func TestHosts(t *testing.T) {
	for name, want := range map[string]string{
		"xeon":     `{"cpu":{"vendor":"GenuineIntel","family":"6","model":"143"},"kernel":"6.1.0-18-amd64","glibc":"2.36","pci":[{"class":"0600","device":"1237","vendor":"8086"},{"class":"0200","device":"020d","sriov_totalvfs":"8","vendor":"15b3"}]}`,
		"graviton": `{"cpu":{"vendor":"0x41","family":"8","model":"0xd40"},"kernel":"5.10.0+cloud","glibc":"2.26","pci":null}`,
		"nothing":  `{"cpu":{},"pci":null}`,
	} {
		got, err := json.Marshal(host(t, name))
		if err != nil || string(got) != want {
			t.Errorf("%s is %s, %v\nwant %s", name, got, err, want)
		}
	}
}

// TestAHostThatIsHalfReadable is not taken for one that lacks what cannot be read.
func TestAHostThatIsHalfReadable(t *testing.T) {
	const devices = "sys/bus/pci/devices/"
	h := compat.ReadHost(tree("-- " + devices + "a/vendor --\n0x15b3\n-- " + devices + "a/device --\n0x020d\n-- " + devices + "b/vendor --\n0x8086\n"))
	if h.PCI != nil {
		t.Errorf("devices are %v", h.PCI)
	}
	large := tree("-- etc/os-release --\nID=x\n")
	large["etc/os-release"].Data = append([]byte("ID=x\n"), make([]byte, 16<<20)...)
	if h := compat.ReadHost(large); h.Release != nil {
		t.Error("a file without an end was read")
	}
}

func TestTheKernelsOwnConfiguration(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte("CONFIG_SMP=y\nCONFIG_LSM=\"lockdown,yama\"\n")); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		packed string
		want   string
	}{{packed.String(), "map[LSM:lockdown,yama SMP:y]"}, {packed.String()[:20], "map[HZ:250]"}, {"", "map[HZ:250]"}} {
		files := tree("-- proc/sys/kernel/osrelease --\n6.1\n-- boot/config-6.1 --\nCONFIG_HZ=250\n-- proc/config.gz --\n")
		files["proc/config.gz"].Data = []byte(test.packed)
		if got := fmt.Sprint(compat.ReadHost(files).Config); got != test.want {
			t.Errorf("%q: %s, want %s", test.packed, got, test.want)
		}
	}
}

func TestSets(t *testing.T) {
	for _, test := range []struct{ host, set, want string }{
		{"xeon", `{}`, "suits, 0 met"},
		{"xeon", `{"tags":["a","b"],"description":"d"}`, "suits, 0 met"},
		{"xeon", `{"tags":7,"description":[]}`, "suits, 0 met"},

		{"xeon", `{"oci.cpu.vendor":"GenuineIntel"}`, "suits, 1 met"},
		{"xeon", `{"oci.cpu.vendor":["AuthenticAMD","genuineintel"]}`, "suits, 1 met"},
		{"xeon", `{"oci.cpu.vendor":"AuthenticAMD"}`, "does not suit, 0 met: needs a CPU of AuthenticAMD; this one is of GenuineIntel"},
		{"nothing", `{"oci.cpu.vendor":"AuthenticAMD"}`, "unknown, 0 met: needs a CPU of AuthenticAMD; whose this one is, is not known"},

		{"xeon", `{"oci.cpu.features":"AVX512FP16"}`, "suits, 1 met"},
		{"xeon", `{"oci.cpu.features":"avx512_fp16, AVX-512-VNNI,SSE4,SSE4.2,AESNI,SHA,FMA3"}`, "suits, 1 met"},
		{"xeon", `{"oci.cpu.features":["AVX2","AMXTILE","AVX10"]}`, "does not suit, 0 met: needs AMXTILE and AVX10, which this CPU has not"},
		{"xeon", `{"oci.cpu.features":"AVX2,OSXSAVE"}`, "unknown, 0 met: needs OSXSAVE; whether this CPU has that is not known"},
		{"graviton", `{"oci.cpu.features":"SVE,LSE,NEON"}`, "suits, 1 met"},
		{"graviton", `{"oci.cpu.features":"AVX2"}`, "does not suit, 0 met: needs AVX2, which this CPU has not"},
		{"nothing", `{"oci.cpu.features":"AVX2"}`, "unknown, 0 met: needs AVX2; whether this CPU has that is not known"},

		{"xeon", `{"oci.os.glibc":">=2.31, <=2.37"}`, "suits, 1 met"},
		{"xeon", `{"oci.os.glibc":["<=2.36",">2.9"]}`, "suits, 1 met"},
		{"xeon", `{"oci.os.glibc":"2.36"}`, "suits, 1 met"},
		{"xeon", `{"oci.os.glibc":"!= 2.36"}`, "does not suit, 0 met: needs glibc != 2.36; this host has 2.36"},
		{"graviton", `{"oci.os.glibc":">=2.31, <=2.37"}`, "does not suit, 0 met: needs glibc >=2.31, <=2.37; this host has 2.26"},
		{"nothing", `{"oci.os.glibc":">=2.31"}`, "unknown, 0 met: needs glibc >=2.31; which this host has is not known"},
		{"xeon", `{"oci.os.glibc":"recent"}`, `unknown, 0 met: oci.os.glibc: "recent" is no range of versions`},
		{"xeon", `{"oci.os.glibc":""}`, "unknown, 0 met: oci.os.glibc has 0 values, not 1 to 1024"},
		{"xeon", `{"oci.os.glibc":2.31}`, "unknown, 0 met: oci.os.glibc is neither a text nor a list of texts"},

		{"xeon", `{"oci.os.kernel":">=5.15"}`, "suits, 1 met"},
		{"xeon", `{"oci.os.kernel":"<=6"}`, "suits, 1 met"},
		{"xeon", `{"oci.os.kernel":">6"}`, "does not suit, 0 met: needs Linux >6; this host has 6.1.0-18-amd64"},
		{"xeon", `{"oci.os.kernel":"=6.1.0.0"}`, "suits, 1 met"},

		{"xeon", `{"oci.pci.devices":"15B3.020D"}`, "suits, 1 met"},
		{"xeon", `{"oci.pci.devices":"15b3.20d,8086.1237"}`, "suits, 1 met"},
		{"xeon", `{"oci.pci.devices":"15B3.020D,10DE.2330"}`, "does not suit, 0 met: needs 10DE.2330 on PCI, which is not there"},
		{"graviton", `{"oci.pci.devices":"15B3.020D"}`, "unknown, 0 met: needs 15B3.020D on PCI; what is there is not known"},
		{"xeon", `{"oci.pci.devices":"a NIC"}`, `unknown, 0 met: oci.pci.devices: "a NIC" is no device`},

		{"xeon", `{"oci.cpu.vendor":"GenuineIntel","oci.gpu.model":"x"}`, "unknown, 1 met: oci.gpu.model is not a key that is known"},
		{"xeon", `{"oci.cpu.vendor":"AuthenticAMD","oci.gpu.model":"x"}`, "does not suit, 0 met: needs a CPU of AuthenticAMD; this one is of GenuineIntel; oci.gpu.model is not a key that is known"},
	} {
		d, err := compat.ParseBlob([]byte(`{"compatibilities":[` + test.set + `]}`))
		if err != nil {
			t.Errorf("%s: %v", test.set, err)
			continue
		}
		if got := toldAll(d, host(t, test.host)); got != test.want {
			t.Errorf("%s of %s: %s\nwant %s", test.set, test.host, got, test.want)
		}
	}
}

func TestProposals(t *testing.T) {
	for _, test := range []struct {
		file  string
		parse func([]byte) (*compat.Document, error)
		host  string
		want  string
	}{
		{"proposal-i.json", compat.ParseConfig, "xeon", "suits, 4 met\ndoes not suit, 1 met: needs a CPU of AuthenticAMD; this one is of GenuineIntel"},
		{"proposal-i.json", compat.ParseConfig, "graviton", "does not suit, 0 met: needs AVX512FP16, which this CPU has not; needs a CPU of GenuineIntel; this one is of 0x41; needs glibc >=2.31, <=2.37; this host has 2.26; needs 15B3.020D on PCI; what is there is not known\n" +
			"does not suit, 0 met: needs a CPU of AuthenticAMD; this one is of 0x41; needs glibc >=2.31, <=2.37; this host has 2.26"},
		{"proposal-j.json", compat.ParseBlob, "xeon", "suits, 1 met"},
		{"proposal-j.json", compat.ParseBlob, "nothing", "unknown, 0 met: needs a CPU of GenuineIntel; whose this one is, is not known"},
		{"nfd.yaml", compat.ParseNFD, "xeon", "suits, 4 met\nsuits, 1 met"},
		{"nfd.yaml", compat.ParseNFD, "graviton", "does not suit, 0 met: needs cpu.model vendor_id Intel or AMD; this host has ARM; needs kernel.loadedmodule vfio-pci; whether that is so is not known; pci.device is not known of this host, or pci.device is not known of this host\n" +
			"does not suit, 0 met: needs kernel.version major above 5; this host has 5"},
	} {
		d, err := test.parse([]byte(golden(t, test.file)))
		if err != nil {
			t.Fatalf("%s: %v", test.file, err)
		}
		if got := toldAll(d, host(t, test.host)); got != test.want {
			t.Errorf("%s of %s:\n%s\nwant\n%s", test.file, test.host, got, test.want)
		}
	}
	d, err := compat.ParseConfig([]byte(golden(t, "proposal-i.json")))
	if err != nil {
		t.Fatal(err)
	}
	all := d.Judge(host(t, "xeon"))
	if a, b := all[0], all[1]; a.Description != "for the fourth generation of Xeon" || strings.Join(a.Tags, " ") != "intel" || strings.Join(b.Tags, " ") != "amd epyc" {
		t.Errorf("names are %+v", all)
	}
}

// terms is a document of NFD's of one rule that has these terms.
func terms(text string) string {
	return "version: v1alpha1\ncompatibilities: [{rules: [{name: r, matchFeatures: [" + text + "]}]}]"
}

func TestNFDTerms(t *testing.T) {
	for _, test := range []struct{ host, feature, expressions, want string }{
		{"xeon", "cpu.cpuid", "AVX512FP16: {op: Exists}", "suits, 1 met"},
		{"xeon", "cpu.cpuid", "SSE42: {op: Exists}, AMXTILE: {op: DoesNotExist}", "suits, 2 met"},
		{"xeon", "cpu.cpuid", "AVX2: {op: DoesNotExist}", "does not suit, 0 met: needs cpu.cpuid no AVX2; it is there"},
		{"xeon", "cpu.cpuid", "AVX10: {op: Exists}", "does not suit, 0 met: needs cpu.cpuid AVX10, which this host has not"},
		{"xeon", "cpu.cpuid", "AVX2: {op: In, value: ['true']}", "does not suit, 0 met: needs cpu.cpuid AVX2 true; it is there, and has no value"},
		{"xeon", "cpu.cpuid", "OSXSAVE: {op: DoesNotExist}", "unknown, 0 met: needs cpu.cpuid no OSXSAVE; whether that is so is not known"},
		{"xeon", "cpu.model", "vendor_id: {op: NotIn, value: [AMD]}, family: {op: In, value: [6]}, id: {op: GtLt, value: ['142', '144']}", "suits, 3 met"},
		{"xeon", "cpu.model", "id: {op: GtLt, value: ['143', '200']}", "does not suit, 0 met: needs cpu.model id between 143 and 200; this host has 143"},
		{"graviton", "cpu.model", "id: {op: Gt, value: [1]}", `unknown, 0 met: needs cpu.model id above 1; that of this host is "0xd40", and no number`},
		{"xeon", "cpu.model", "hypervisor: {op: DoesNotExist}", "unknown, 0 met: needs cpu.model no hypervisor; that of this host is not known"},
		{"xeon", "pci.device", "vendor: {op: In, value: [15b3]}, iommu/version: {op: DoesNotExist}", "unknown, 0 met: needs pci.device no iommu/version; that of this host is not known"},
		{"nothing", "cpu.model", "family: {op: Exists}", "unknown, 0 met: cpu.model is not known of this host"},
		{"xeon", "kernel.version", "major: {op: Gt, value: ['5']}, minor: {op: Lt, value: ['2']}, full: {op: InRegexp, value: ['^6[.]1']}", "suits, 3 met"},
		{"xeon", "kernel.version", "major: {op: Lt, value: ['6']}", "does not suit, 0 met: needs kernel.version major below 6; this host has 6"},
		{"graviton", "kernel.version", "minor: {op: In, value: ['10']}", "suits, 1 met"},
		{"xeon", "kernel.config", "SMP: {op: In, value: [y]}, VFIO_PCI: {op: Exists}, PREEMPT: {op: DoesNotExist}", "suits, 3 met"},
		{"xeon", "kernel.config", "HZ: {op: Gt, value: ['300']}", "does not suit, 0 met: needs kernel.config HZ above 300; this host has 250"},
		{"xeon", "kernel.config", "PREEMPT: {op: NotIn, value: [y]}", "does not suit, 0 met: needs kernel.config PREEMPT not y; this host has none"},
		{"graviton", "kernel.config", "SMP: {op: Exists}", "unknown, 0 met: kernel.config is not known of this host"},
		{"xeon", "kernel.config", "SMP: {op: IsTrue}", "does not suit, 0 met: needs kernel.config SMP to be true; this host has y"},
		{"xeon", "kernel.config", "SMP: {op: IsFalse}", "does not suit, 0 met: needs kernel.config SMP to be false; this host has y"},
		{"xeon", "kernel.config", "SMP: {op: Any}, NONE: {op: Any}", "suits, 2 met"},
		{"xeon", "kernel.loadedmodule", "vfio-pci: {op: Exists}, mlx5_core: {op: Exists}", "suits, 2 met"},
		{"xeon", "kernel.loadedmodule", "nvidia: {op: Exists}", "does not suit, 0 met: needs kernel.loadedmodule nvidia, which this host has not"},
		{"xeon", "system.osrelease", "ID: {op: In, value: [debian]}, VERSION_ID.major: {op: Gt, value: ['11']}", "suits, 2 met"},
		{"graviton", "system.osrelease", "ID: {op: In, value: [amzn]}", "suits, 1 met"},
		{"xeon", "pci.device", "vendor: {op: In, value: [15b3]}, sriov_totalvfs: {op: Gt, value: ['4']}", "suits, 2 met"},
		{"xeon", "pci.device", "vendor: {op: In, value: ['8086']}, class: {op: In, value: ['0200']}", "does not suit, 0 met: needs a pci.device, class 0200, vendor 8086; this host has none"},
		{"xeon", "usb.device", "vendor: {op: Exists}", "unknown, 0 met: usb.device is not known of this host"},
		{"xeon", "cpu.cpuid", "AVX2: {op: Perhaps}", `unknown, 0 met: cpu.cpuid AVX2: "Perhaps" is not an operator that is known`},
		{"xeon", "cpu.cpuid", "AVX2: {op: Exists, value: [x]}", "unknown, 0 met: cpu.cpuid AVX2: Exists takes 0 to 0 values, not 1"},
		{"xeon", "cpu.cpuid", "AVX2: {op: Exists, type: version}", "unknown, 0 met: cpu.cpuid AVX2: type is not a field that is known"},
		{"xeon", "cpu.cpuid", "AVX2: null", "unknown, 0 met: cpu.cpuid AVX2: it is empty"},
		{"xeon", "kernel.version", "major: {op: Gt, value: [six]}", `unknown, 0 met: kernel.version major: "six" is no number`},
		{"xeon", "kernel.version", "major: {op: GtLt, value: [6, 6]}", "unknown, 0 met: kernel.version major: nothing is between 6 and 6"},
		{"xeon", "kernel.version", "full: {op: InRegexp, value: ['[']}", `unknown, 0 met: kernel.version full: "[" is no regular expression`},
	} {
		d, err := compat.ParseNFD([]byte(terms("{feature: " + test.feature + ", matchExpressions: {" + test.expressions + "}}")))
		if err != nil {
			t.Errorf("%s: %v", test.expressions, err)
			continue
		}
		if got := toldAll(d, host(t, test.host)); got != test.want {
			t.Errorf("%s %s of %s: %s\nwant %s", test.feature, test.expressions, test.host, got, test.want)
		}
	}
}

func TestNFDRules(t *testing.T) {
	const (
		has     = "matchFeatures: [{feature: cpu.cpuid, matchExpressions: {AVX2: {op: Exists}}}]"
		lacks   = "matchFeatures: [{feature: cpu.cpuid, matchExpressions: {AVX10: {op: Exists}}}]"
		unknown = "matchFeatures: [{feature: usb.device}]"
		lacking = "needs cpu.cpuid AVX10, which this host has not"
		open    = "usb.device is not known of this host"
	)
	for rules, want := range map[string]string{
		"":                                   "suits, 0 met",
		"{" + has + "}, {" + has + "}":       "suits, 2 met",
		"{" + has + "}, {" + lacks + "}":     "does not suit, 1 met: " + lacking,
		"{" + unknown + "}, {" + lacks + "}": "does not suit, 0 met: " + lacking + "; " + open,
		"{matchAny: [{" + lacks + "}, {" + unknown + "}, {" + has + "}]}":                                                     "suits, 1 met",
		"{matchAny: [{" + lacks + "}, {" + unknown + "}]}":                                                                    "unknown, 0 met: " + open,
		"{matchAny: [{" + lacks + "}, {" + lacks + "}]}":                                                                      "does not suit, 0 met: " + lacking + ", or " + lacking,
		"{" + has + ", matchAny: [{" + lacks + "}]}":                                                                          "does not suit, 1 met: " + lacking,
		"{labels: {a: b}, vars: {c: d}, " + has + "}":                                                                         "suits, 1 met",
		"{matchTomorrow: [], " + has + "}":                                                                                    "unknown, 1 met: matchTomorrow is not a field that is known",
		"{matchAny: [{matchTomorrow: [], " + has + "}]}":                                                                      "unknown, 0 met: matchTomorrow is not a field that is known",
		"{matchFeatures: [{feature: kernel.config, matchName: {op: InRegexp, value: ['^VFIO']}}]}":                            "suits, 1 met",
		"{matchFeatures: [{feature: pci.device, matchName: {op: In, value: [sriov_totalvfs]}}]}":                              "suits, 1 met",
		"{matchFeatures: [{feature: kernel.config, matchName: {op: In, value: [XFS]}}]}":                                      "does not suit, 0 met: needs a name XFS in kernel.config; there is none",
		"{matchFeatures: [{feature: cpu.cpuid, matchName: {op: InRegexp, value: ['^AVX']}}]}":                                 "unknown, 0 met: the names of cpu.cpuid are not known as NFD has them",
		"{matchFeatures: [{feature: kernel.config, matchName: {op: In}}]}":                                                    "unknown, 0 met: kernel.config matchName: In takes 1 to 1024 values, not 0",
		"{matchFeatures: [{feature: kernel.config, matchExpressions: {HZ: {op: Exists}}, matchName: {op: In, value: [HZ]}}]}": "suits, 2 met",
	} {
		d, err := compat.ParseNFD([]byte("version: v1alpha1\ncompatibilities: [{rules: [" + rules + "]}]"))
		if err != nil {
			t.Errorf("%s: %v", rules, err)
			continue
		}
		if got := toldAll(d, host(t, "xeon")); got != want {
			t.Errorf("%s: %s\nwant %s", rules, got, want)
		}
	}
}

func TestWhatIsNoDocument(t *testing.T) {
	large := strings.Repeat(" ", compat.MaxSize+1)
	sets := strings.Repeat("{},", 1024) + "{}"
	var keys, names []string
	for i := range 16<<10 + 1 {
		keys = append(keys, fmt.Sprintf(`"%d":""`, i))
		names = append(names, fmt.Sprintf("F%d: {op: Exists}", i))
	}
	for _, test := range []struct {
		parse func([]byte) (*compat.Document, error)
		text  string
		want  string
	}{
		{compat.ParseConfig, "", "compatibilities: unexpected end"},
		{compat.ParseConfig, "[]", "compatibilities: json: cannot unmarshal array"},
		{compat.ParseConfig, `{"config":{"compatibilities":[7]}}`, "compatibilities: json: cannot unmarshal number"},
		{compat.ParseConfig, large, "more than 4194304 bytes"},
		{compat.ParseBlob, `{"compatibilities":{}}`, "compatibilities: json: cannot unmarshal object"},
		{compat.ParseBlob, large, "more than 4194304 bytes"},
		{compat.ParseBlob, `{"compatibilities":[` + sets + `]}`, "1025 sets are more than 1024"},
		{compat.ParseBlob, `{"compatibilities":[{` + strings.Join(keys, ",") + `}]}`, "more than 16384 conditions"},
		{compat.ParseNFD, "", `NFD: version "" is not v1alpha1`},
		{compat.ParseNFD, "version: v2", `NFD: version "v2" is not v1alpha1`},
		{compat.ParseNFD, "[", "NFD: yaml"},
		{compat.ParseNFD, "version: v1alpha1\ncompatibilities: 7", "NFD: yaml"},
		{compat.ParseNFD, large, "more than 4194304 bytes"},
		{compat.ParseNFD, "version: v1alpha1\ncompatibilities: [" + sets + "]", "1025 sets are more than 1024"},
		{compat.ParseNFD, terms("{feature: cpu.cpuid, matchExpressions: {" + strings.Join(names, ", ") + "}}"), "more than 16384 conditions"},
	} {
		if d, err := test.parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.60s: %+v, %v; want %s", test.text, d, err, test.want)
		}
	}
}

// TestLargeExpressions cannot make a document take more memory than its size explains.
func TestLargeExpressions(t *testing.T) {
	for pattern, want := range map[string]string{
		strings.Repeat("a", 1025):                  "a regular expression of 1025 bytes is longer than 1024",
		"(" + strings.Repeat("a", 200) + "){1000}": "the regular expressions are too large",
	} {
		d, err := compat.ParseNFD([]byte(terms("{feature: kernel.version, matchExpressions: {full: {op: InRegexp, value: ['" + pattern + "']}}}")))
		if err != nil {
			t.Fatal(err)
		}
		if got := toldAll(d, host(t, "xeon")); got != "unknown, 0 met: kernel.version full: "+want {
			t.Errorf("%.20s: %s", pattern, got)
		}
	}
}

func TestOrder(t *testing.T) {
	var (
		suits    = compat.Judgement{Verdict: compat.Suits}
		more     = compat.Judgement{Verdict: compat.Suits, Met: 3}
		weighty  = compat.Judgement{Verdict: compat.Suits, Met: 1, Weight: 1}
		silent   = compat.Judgement{Verdict: compat.Silent}
		unknown  = compat.Judgement{Verdict: compat.Unknown, Met: 9, Weight: 9, Unjudged: []string{"u"}}
		unsuited = compat.Judgement{Verdict: compat.Unsuited, Met: 9, Weight: 9, Unmet: []string{"n"}}
	)
	order := []compat.Judgement{unsuited, unknown, silent, suits, weighty, more}
	for i, a := range order {
		for k, b := range order {
			if got := a.Compare(b); got > 0 != (i > k) || got < 0 != (i < k) {
				t.Errorf("%+v and %+v compare as %d", a, b, got)
			}
		}
	}
	for _, test := range []struct {
		all  []compat.Judgement
		best compat.Judgement
	}{
		{nil, silent},
		{[]compat.Judgement{unsuited}, unsuited},
		{[]compat.Judgement{unsuited, unknown}, unknown},
		{[]compat.Judgement{unknown, suits, unsuited}, suits},
		{[]compat.Judgement{suits, more}, more},
		{[]compat.Judgement{suits, weighty, more}, weighty},
	} {
		if got := compat.Best(test.all); told(got) != told(test.best) {
			t.Errorf("best of %+v is %+v", test.all, got)
		}
	}
	for _, test := range []struct {
		all  []compat.Judgement
		want string
	}{
		{nil, "says nothing, 0 met"},
		{[]compat.Judgement{silent, suits, more, silent}, "suits, 3 met"},
		{[]compat.Judgement{more, unknown}, "unknown, 12 met: u"},
		{[]compat.Judgement{unknown, unsuited, suits}, "does not suit, 18 met: n; u"},
	} {
		if got := told(compat.All(test.all)); got != test.want {
			t.Errorf("%+v: %s, want %s", test.all, got, test.want)
		}
	}
}

func TestIndex(t *testing.T) {
	const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	const desc = `{"mediaType":"m","digest":"` + digest + `","size":5}`
	entry := func(platform string) string { return `{"manifests":[{"mediaType":"i","platform":` + platform + `}]}` }
	for text, want := range map[string]string{
		`{}`:                    "",
		`{"manifests":null}`:    "",
		entry(`null`):           "i nothing",
		entry(`{"os":"linux"}`): "i nothing",
		entry(`{"os":"linux","compat":` + desc + `}`):               "i m",
		entry(`{"compatibilities":` + desc + `}`):                   "i m",
		entry(`{"compatibilities":[],"compat":` + desc + `}`):       "i m",
		entry(`{"compatibilities":[]}`):                             "i malformed",
		entry(`{"compat":{"mediaType":"m","digest":"x","size":5}}`): "i malformed",
		entry(`{"compat":{"digest":"` + digest + `","size":5}}`):    "i malformed",
		entry(`{"compat":7,"compatibilities":` + desc + `}`):        "i malformed",
	} {
		entries, err := compat.ParseIndex([]byte(text))
		var got []string
		for _, e := range entries {
			said := "nothing"
			switch {
			case e.Malformed:
				said = "malformed"
			case e.Compat != nil:
				said = e.Compat.MediaType
			}
			got = append(got, e.MediaType+" "+said)
		}
		if err != nil || strings.Join(got, ", ") != want {
			t.Errorf("%s: %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "[]", `{"manifests":7}`, `{"manifests":[{"platform":7}]}`, strings.Repeat(" ", compat.MaxSize+1)} {
		if entries, err := compat.ParseIndex([]byte(text)); err == nil {
			t.Errorf("%.40s: %v", text, entries)
		}
	}
}
