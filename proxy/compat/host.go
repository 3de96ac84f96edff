package compat

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Host is a machine, as far as it has shown itself. What is "" or nil is not known.
type Host struct {
	CPU     CPU         `json:"cpu"`
	Kernel  string      `json:"kernel,omitempty"` // its release, as in 6.1.0-18-amd64
	Glibc   string      `json:"glibc,omitempty"`  // its version, as in 2.36
	PCI     []PCIDevice `json:"pci"`
	Config  Attributes  `json:"-"` // of the kernel, as in SMP: y
	Modules Attributes  `json:"-"` // that are loaded; the values are ""
	Release Attributes  `json:"-"` // /etc/os-release
}

// CPU is what all processors of a machine have in common.
type CPU struct {
	Vendor string `json:"vendor,omitempty"` // vendor_id on x86, as in GenuineIntel; on Arm the implementer, as in 0x41
	Family string `json:"family,omitempty"`
	Model  string `json:"model,omitempty"`

	features features
}

// Attributes are names with values.
type Attributes map[string]string

// PCIDevice is a device as sysfs describes it, under the names of its files: numbers in lower
// hexadecimal without 0x, and of class the first four digits, as NFD has them.
type PCIDevice Attributes

const (
	maxHostFile   = 16 << 20 // bytes of a file that is read
	maxPCIDevices = 16 << 10
)

// ReadHost reads what the files of a Linux machine say of it. root is its root directory.
// What cannot be read is left unknown.
func ReadHost(root fs.FS) *Host {
	h := &Host{CPU: readCPU(root), Kernel: strings.TrimSpace(string(read(root, "proc/sys/kernel/osrelease"))), Glibc: readGlibc(root), PCI: readPCI(root)}
	h.Config = readConfig(root, h.Kernel)
	if p := read(root, "proc/modules"); p != nil {
		h.Modules = parseModules(p)
	}
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		if p := read(root, name); p != nil {
			h.Release = parseRelease(p)
			break
		}
	}
	return h
}

// read returns nil for what is not there, cannot be read or is too large.
func read(root fs.FS, name string) []byte {
	if !fs.ValidPath(name) {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	return readAll(f)
}

func readAll(r io.Reader) []byte {
	p, err := io.ReadAll(io.LimitReader(r, maxHostFile+1))
	if err != nil || len(p) > maxHostFile {
		return nil
	}
	return p
}

func readCPU(root fs.FS) (c CPU) {
	seen := ""
	for key, value := range pairs(read(root, "proc/cpuinfo"), ":") {
		switch key {
		case "vendor_id", "CPU implementer":
			c.Vendor = value
		case "cpu family", "CPU architecture":
			c.Family = value
		case "model", "CPU part":
			c.Model = value
		case "flags", "Features":
			if value != seen { // one line for each processor, mostly the same
				c.features, seen = c.features.and(parseFeatures(value)), value
			}
		}
	}
	return c
}

// pairs yields the lines of a text that are a key and a value.
func pairs(text []byte, separator string) func(yield func(key, value string) bool) {
	return func(yield func(key, value string) bool) {
		for line := range bytes.Lines(text) {
			key, value, ok := strings.Cut(string(line), separator)
			if ok && !yield(strings.TrimSpace(key), strings.TrimSpace(value)) {
				return
			}
		}
	}
}

// banner is what the C library says of itself when it is run as a program.
var banner = regexp.MustCompile(`GNU C Library[^\n]{0,200} release version ([0-9]+(\.[0-9]+)+)`)

// readGlibc finds the version in the library itself. Libraries of several architectures on
// one machine are of one version.
func readGlibc(root fs.FS) string {
	places := []string{"lib64", "usr/lib64"}
	for _, dir := range []string{"lib", "usr/lib"} {
		triplets, _ := fs.Glob(root, dir+"/*-linux-gnu*")
		places = append(append(places, triplets...), dir)
	}
	for _, dir := range places {
		if m := banner.FindSubmatch(read(root, dir+"/libc.so.6")); m != nil {
			return string(m[1])
		}
	}
	return ""
}

// pciFiles are what NFD reads of a device. The first two every device has.
var pciFiles = []string{"vendor", "device", "class", "subsystem_vendor", "subsystem_device", "sriov_totalvfs", "iommu_group/type"}

func readPCI(root fs.FS) []PCIDevice {
	const dir = "sys/bus/pci/devices"
	entries, err := fs.ReadDir(root, dir)
	if err != nil || len(entries) > maxPCIDevices {
		return nil
	}
	all := []PCIDevice{}
	for _, e := range entries {
		d := make(PCIDevice)
		for _, name := range pciFiles {
			if p := read(root, path.Join(dir, e.Name(), name)); p != nil {
				d[name] = strings.ToLower(strings.TrimPrefix(strings.TrimSpace(string(p)), "0x"))
			}
		}
		if d["vendor"] == "" || d["device"] == "" {
			return nil // what is not known of one device is not known of all
		}
		if class := d["class"]; len(class) > 4 {
			d["class"] = class[:4]
		}
		all = append(all, d)
	}
	return all
}

// readConfig reads the kernel's configuration from where distributions keep it.
func readConfig(root fs.FS, release string) Attributes {
	if packed := read(root, "proc/config.gz"); packed != nil {
		if r, err := gzip.NewReader(bytes.NewReader(packed)); err == nil {
			if p := readAll(r); p != nil {
				return parseConfig(p)
			}
		}
	}
	if release == "" {
		return nil
	}
	for _, name := range []string{"boot/config-" + release, "lib/modules/" + release + "/config", "usr/lib/kernel/config-" + release, "usr/lib/ostree-boot/config-" + release} {
		if p := read(root, name); p != nil {
			return parseConfig(p)
		}
	}
	return nil
}

func parseConfig(p []byte) Attributes {
	a := make(Attributes)
	for key, value := range pairs(p, "=") {
		if name, ok := strings.CutPrefix(key, "CONFIG_"); ok {
			a[name] = strings.Trim(value, `"`)
		}
	}
	return a
}

func parseModules(p []byte) Attributes {
	a := make(Attributes)
	for lines := bufio.NewScanner(bytes.NewReader(p)); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), " ")
		a[name] = ""
	}
	return a
}

// moduleName is a module's name as the kernel has it; elsewhere it may have hyphens.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func parseRelease(p []byte) Attributes {
	a := make(Attributes)
	for key, value := range pairs(p, "=") {
		if strings.HasPrefix(key, "#") {
			continue
		}
		if plain, err := strconv.Unquote(value); err == nil {
			value = plain
		}
		a[key] = strings.Trim(value, "'")
	}
	if id := a["VERSION_ID"]; id != "" {
		major, minor, _ := strings.Cut(id, ".")
		a["VERSION_ID.major"], a["VERSION_ID.minor"] = major, minor
	}
	return a
}

// hasPCI reports whether the host has a device of a vendor.
func (h *Host) hasPCI(vendor, device string) bool {
	return slices.ContainsFunc(h.PCI, func(d PCIDevice) bool { return d["vendor"] == vendor && d["device"] == device })
}
