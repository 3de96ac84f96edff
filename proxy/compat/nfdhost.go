package compat

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// feature is one of NFD's features of a host: names, names with values, or several things
// (instances) with such. One that is not known has none of them.
type feature struct {
	flags      func(name string) (there, known bool)
	attributes Attributes
	instances  []PCIDevice
	names      []string // of attributes that would have been seen; nil for all
}

// feature returns a feature by NFD's name for it. NFD has more of them; those that take its
// daemon, or other tools than a look at files, are not known here.
func (h *Host) feature(name string) feature {
	switch name {
	case "cpu.cpuid":
		return feature{flags: h.CPU.features.has}
	case "cpu.model":
		return feature{attributes: h.CPU.model(), names: []string{"vendor_id", "family", "id"}}
	case "kernel.version":
		return feature{attributes: kernelVersion(h.Kernel)}
	case "kernel.config":
		return feature{attributes: h.Config}
	case "kernel.loadedmodule":
		return feature{flags: func(module string) (there, known bool) {
			_, there = h.Modules[moduleName(module)]
			return there, h.Modules != nil
		}}
	case "pci.device":
		return feature{instances: h.PCI, names: pciFiles}
	case "system.osrelease":
		return feature{attributes: h.Release}
	}
	return feature{}
}

// vendors are NFD's names for the makers of CPUs, by those that CPUs have.
var vendors = map[string]string{
	"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon", "CentaurHauls": "VIA",
	"0x41": "ARM", "0x42": "Broadcom", "0x43": "Cavium", "0x46": "Fujitsu", "0x4e": "NVIDIA", "0x51": "Qualcomm", "0x56": "Marvell",
}

func (c CPU) model() Attributes {
	vendor := vendors[c.Vendor]
	if vendor == "" || c.Family == "" || c.Model == "" {
		return nil
	}
	return Attributes{"vendor_id": vendor, "family": c.Family, "id": c.Model}
}

var releaseGrammar = regexp.MustCompile(`^(\d+)(?:\.(\d+))?(?:\.(\d+))?`)

func kernelVersion(release string) Attributes {
	if release == "" {
		return nil
	}
	a := Attributes{"full": release}
	if m := releaseGrammar.FindStringSubmatch(release); m != nil {
		a["major"], a["minor"], a["revision"] = m[1], m[2], m[3]
	}
	return a
}

// findings answers all that is wanted of a feature.
func (f feature) findings(name string, wants []want) (all findings) {
	switch {
	case f.flags != nil:
		for _, w := range wants {
			all = all.and(f.flag(name, w))
		}
	case f.attributes != nil:
		for _, w := range wants {
			all = all.and(f.attribute(name, f.attributes, w))
		}
	case f.instances != nil:
		return f.instance(name, wants)
	default:
		return unjudged("%.80s is not known of this host", name)
	}
	return all
}

func (f feature) flag(name string, w want) findings {
	there, known := f.flags(w.name)
	switch {
	case !known:
		return unjudged("needs %s %s; whether that is so is not known", name, w)
	case there && (w.op == "Exists" || w.op == "Any") || !there && w.absent():
		return met
	case there && w.op == "DoesNotExist":
		return unmet("needs %s %s; it is there", name, w)
	case there:
		return unmet("needs %s %s; it is there, and has no value", name, w)
	}
	return unmet("needs %s %s, which this host has not", name, w)
}

func (f feature) attribute(name string, of Attributes, w want) findings {
	value, there := of[w.name]
	switch {
	case there:
	case f.names != nil && !slices.Contains(f.names, w.name):
		return unjudged("needs %s %s; that of this host is not known", name, w)
	case w.absent():
		return met
	default:
		return unmet("needs %s %s; this host has none", name, w)
	}
	switch holds, judged := w.holds(value); {
	case !judged:
		return unjudged("needs %s %s; that of this host is %q, and no number", name, w, value)
	case !holds:
		return unmet("needs %s %s; this host has %s", name, w, value)
	}
	return met
}

// instance looks for one thing of which all holds.
func (f feature) instance(name string, wants []want) findings {
	var texts, open []string
	for _, w := range wants {
		texts = append(texts, w.String())
	}
	for _, thing := range f.instances {
		var all findings
		for _, w := range wants {
			all = all.and(f.attribute(name, Attributes(thing), w))
		}
		switch all.verdict() {
		case Suits:
			return all
		case Unknown:
			open = all.unjudged
		}
	}
	if open != nil {
		return findings{unjudged: open}
	}
	return unmet("needs %s; this host has none", strings.Join(append([]string{"a " + name}, texts...), ", "))
}

// named looks for a name that is as wanted.
func (f feature) named(name string, w want) findings {
	var candidates []Attributes
	switch {
	case f.attributes != nil:
		candidates = []Attributes{f.attributes}
	case f.instances != nil:
		for _, thing := range f.instances {
			candidates = append(candidates, Attributes(thing))
		}
	default:
		return unjudged("the names of %.80s are not known as NFD has them", name)
	}
	for _, a := range candidates {
		for _, has := range slices.Sorted(maps.Keys(a)) {
			if holds, _ := w.holds(has); holds {
				return met
			}
		}
	}
	return unmet("needs %s in %s; there is none", strings.TrimSpace(fmt.Sprint(w)), name)
}
