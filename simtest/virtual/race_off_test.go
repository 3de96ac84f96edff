//go:build !race

package virtual

var sizes = []int{8, 100}

const few = 20
