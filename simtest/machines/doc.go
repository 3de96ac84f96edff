// Package machines makes machines for what tests measure: network namespaces, programs that run
// in them, and long wires between them, for a kernel that cannot delay packets itself. It takes root.
package machines
