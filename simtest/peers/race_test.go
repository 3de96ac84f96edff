//go:build race

package peers

func init() { slow = true }
