// Package netns makes machines of network namespaces, with programs that run on them, granaries among others, light clients,
// and long wires between them, for a kernel that cannot delay packets itself. It takes root.
package netns
