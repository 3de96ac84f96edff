package node

import (
	"cmp"
	"runtime/debug"
)

// release is the version of a build that was released; the linker sets it.
var release string

// Version names the build: the release, the module's version, or the commit it was
// built from.
var Version = cmp.Or(release, version())

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
