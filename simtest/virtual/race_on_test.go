//go:build race

package virtual

// The race detector makes bytes an order of magnitude dearer.
var sizes = []int{8}

const few = 8
