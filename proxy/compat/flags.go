package compat

import (
	"maps"
	"strings"
)

// features are the features of a CPU by their plain names.
type features map[string]bool

// plain is a feature's name without what spellings of it differ in: AVX512FP16 and
// avx512_fp16 are the same.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return -1
	}, name)
}

// linuxNames are plain names that Linux has others for (arch/x86/include/asm/cpufeatures.h),
// as NFD and the manuals of the CPUs' makers write them.
var linuxNames = map[string]string{
	"sse3": "pni", "sse4": "sse41", "aesni": "aes", "clmul": "pclmulqdq", "pclmul": "pclmulqdq", "lzcnt": "abm", "fma3": "fma",
	"sha": "shani", "htt": "ht", "x87": "fpu", "cmpxchg8": "cx8", "cmpxchg8b": "cx8", "cmpxchg16b": "cx16", "lahf": "lahflm",
	"sysee": "sep", "amd3dnow": "3dnow", "amd3dnowext": "3dnowext", "neon": "asimd", "lse": "atomics",
}

// unlisted are features that Linux does not list, whether a CPU has them or not.
var unlisted = map[string]bool{"osxsave": true, "hybridcpu": true, "keylocker": true, "keylockerw": true}

// has reports whether there is a feature, and whether that is known.
func (f features) has(name string) (there, known bool) {
	p := plain(name)
	if p == "" || f == nil || unlisted[p] {
		return false, false
	}
	return f[p] || f[linuxNames[p]], true
}

// parseFeatures reads a line of /proc/cpuinfo.
func parseFeatures(line string) features {
	f := make(features)
	for name := range strings.FieldsSeq(line) {
		f[plain(name)] = true
	}
	return f
}

// and leaves what both have: a program may run on any CPU of a machine.
func (f features) and(other features) features {
	if f == nil {
		return other
	}
	maps.DeleteFunc(f, func(name string, _ bool) bool { return !other[name] })
	return f
}
