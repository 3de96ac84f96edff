package main

import (
	"os"
	"strconv"
	"strings"
)

// busyTicks returns how long the machine's CPUs have worked, and how long they
// have been there, in ticks since boot (proc(5), /proc/stat).
func busyTicks() (busy, all float64) {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(line) {
		if i == 0 || i > 8 { // "cpu", and the time of guests, which is user time too
			continue
		}
		v, _ := strconv.ParseFloat(field, 64)
		all += v
		if i != 4 && i != 5 { // idle and iowait
			busy += v
		}
	}
	return busy, all
}
