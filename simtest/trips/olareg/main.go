// Command olareg is the registry of that name: it lists referrers, and keeps manifests by
// SHA-512 too, of which the distribution registry does neither. Its own command cannot be
// installed, for the module proxy lists no versions of it.
//
// It is a module of its own, to keep the product's free of it.
//
//	olareg ADDRESS
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: olareg ADDRESS")
		os.Exit(2)
	}
	// What is pushed stays: nothing is collected while tests push what refers to it.
	s := olareg.New(config.Config{
		HTTP:    config.ConfigHTTP{Addr: os.Args[1]},
		Storage: config.ConfigStorage{StoreType: config.StoreMem, GC: config.ConfigGC{Frequency: -1}},
	})
	if err := s.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "olareg:", err)
		os.Exit(1)
	}
}
