//go:build race

package toc_test

func init() { slow = true }
