package compat

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// MediaType is that of a blob of compatibilities (proposal J).
const MediaType = "application/vnd.oci.image.compatibilities.v1+json"

// MaxSize is how large a document may be, in bytes.
const MaxSize = 4 << 20

// Limits of a document.
const (
	maxSets       = 1024
	maxConditions = 16 << 10 // of all sets
	maxValues     = 1024     // of a condition
)

// keys are what the proposals' sets may ask for. Each makes a condition of its value's texts,
// of which there is at least one.
var keys = map[string]func(texts []string) condition{
	"oci.cpu.vendor":   vendorIs,
	"oci.cpu.features": hasFeatures,
	"oci.os.glibc":     glibcIn,
	"oci.os.kernel":    kernelIn,
	"oci.pci.devices":  hasDevices,
}

// ParseConfig reads an image configuration that has compatibilities (proposal I).
func ParseConfig(p []byte) (*Document, error) {
	var config struct {
		Config struct {
			Compatibilities []map[string]json.RawMessage `json:"compatibilities"`
		} `json:"config"`
	}
	if err := decode(p, &config); err != nil {
		return nil, err
	}
	return newDocument(config.Config.Compatibilities)
}

// ParseBlob reads a blob of compatibilities (proposal J).
func ParseBlob(p []byte) (*Document, error) {
	var blob struct {
		Compatibilities []map[string]json.RawMessage `json:"compatibilities"`
	}
	if err := decode(p, &blob); err != nil {
		return nil, err
	}
	return newDocument(blob.Compatibilities)
}

func decode(p []byte, v any) error {
	if len(p) > MaxSize {
		return fmt.Errorf("compatibilities: more than %d bytes", MaxSize)
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("compatibilities: %w", err)
	}
	return nil
}

func newDocument(sets []map[string]json.RawMessage) (*Document, error) {
	if len(sets) > maxSets {
		return nil, fmt.Errorf("compatibilities: %d sets are more than %d", len(sets), maxSets)
	}
	d, conditions := &Document{}, 0
	for _, fields := range sets {
		if conditions += len(fields); conditions > maxConditions {
			return nil, fmt.Errorf("compatibilities: more than %d conditions", maxConditions)
		}
		d.sets = append(d.sets, newSet(fields))
	}
	return d, nil
}

func newSet(fields map[string]json.RawMessage) (s set) {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		texts, err := textsOf(fields[key])
		switch {
		case key == "tags":
			s.tags = texts
		case key == "description":
			_ = json.Unmarshal(fields[key], &s.description) // it asks for nothing, so it may be anything
		case keys[key] == nil:
			s.conditions = append(s.conditions, cannotJudge("%.80s is not a key that is known", key))
		case err != nil:
			s.conditions = append(s.conditions, cannotJudge("%s %v", key, err))
		default:
			s.conditions = append(s.conditions, keys[key](texts))
		}
	}
	return s
}

// textsOf reads a value: a text with commas, or a list of such.
func textsOf(raw json.RawMessage) (texts []string, err error) {
	var one string
	var list []string
	if json.Unmarshal(raw, &one) == nil {
		list = []string{one}
	} else if json.Unmarshal(raw, &list) != nil {
		return nil, errNoTexts
	}
	for _, s := range list {
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				texts = append(texts, part)
			}
		}
	}
	if len(texts) == 0 || len(texts) > maxValues {
		return nil, fmt.Errorf("has %d values, not 1 to %d", len(texts), maxValues)
	}
	return texts, nil
}

var errNoTexts = errors.New("is neither a text nor a list of texts")

func vendorIs(names []string) condition {
	return func(h *Host) findings {
		mine := h.CPU.Vendor
		switch {
		case mine == "":
			return unjudged("needs a CPU of %s; whose this one is, is not known", strings.Join(names, " or "))
		case slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, mine) }):
			return met
		}
		return unmet("needs a CPU of %s; this one is of %s", strings.Join(names, " or "), mine)
	}
}

func hasFeatures(names []string) condition {
	return func(h *Host) findings {
		var lacking, open []string
		for _, name := range names {
			switch there, known := h.CPU.features.has(name); {
			case !known:
				open = append(open, name)
			case !there:
				lacking = append(lacking, name)
			}
		}
		switch {
		case len(lacking) > 0:
			return unmet("needs %s, which this CPU has not", several(lacking))
		case len(open) > 0:
			return unjudged("needs %s; whether this CPU has that is not known", several(open))
		}
		return met
	}
}

func glibcIn(bounds []string) condition {
	return versionIn("oci.os.glibc", "glibc", bounds, func(h *Host) string { return h.Glibc })
}

func kernelIn(bounds []string) condition {
	return versionIn("oci.os.kernel", "Linux", bounds, func(h *Host) string { return h.Kernel })
}

func versionIn(key, what string, bounds []string, of func(*Host) string) condition {
	within, err := parseRange(bounds)
	if err != nil {
		return cannotJudge("%s: %v", key, err)
	}
	text := what + " " + strings.Join(bounds, ", ")
	return func(h *Host) findings {
		mine := of(h)
		v := parseVersion(mine)
		switch {
		case v == nil:
			return unjudged("needs %s; which this host has is not known", text)
		case within.has(v):
			return met
		}
		return unmet("needs %s; this host has %s", text, mine)
	}
}

// deviceGrammar is VENDOR.DEVICE in hexadecimal, as in 15B3.020D.
var deviceGrammar = regexp.MustCompile(`^([0-9a-f]{1,4})[.:]([0-9a-f]{1,4})$`)

func hasDevices(names []string) condition {
	type device struct{ vendor, device string }
	var wanted []device
	for _, name := range names {
		m := deviceGrammar.FindStringSubmatch(strings.ToLower(name))
		if m == nil {
			return cannotJudge("oci.pci.devices: %.40q is no device", name)
		}
		wanted = append(wanted, device{fourDigits(m[1]), fourDigits(m[2])})
	}
	return func(h *Host) findings {
		if h.PCI == nil {
			return unjudged("needs %s on PCI; what is there is not known", several(names))
		}
		var lacking []string
		for i, w := range wanted {
			if !h.hasPCI(w.vendor, w.device) {
				lacking = append(lacking, names[i])
			}
		}
		if len(lacking) > 0 {
			return unmet("needs %s on PCI, which is not there", several(lacking))
		}
		return met
	}
}

func fourDigits(hex string) string { return strings.Repeat("0", 4-len(hex)) + hex }
