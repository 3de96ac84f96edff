//go:build !race

package sim

var sizes = []int{8, 100}

const few = 20
