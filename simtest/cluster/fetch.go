package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/netns"
)

// outcome is what a client prints when it has ended.
type outcome struct {
	Seconds float64
	Bytes   int64
	Error   string
}

// fetch is a light client ([netns.Pull]). It begins when it reads a line, so that many
// can begin together.
//
//	cluster fetch http://127.0.0.1:5050 NAME DIGEST
func fetch(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cluster fetch URL NAME DIGEST (then a line on stdin)")
		return 2
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return 2
	}
	begin := time.Now()
	n, err := netns.Pull(context.Background(), http.DefaultClient, args[0]+"/v2/"+args[1], tag, digest.Digest(args[2]))
	o := outcome{Seconds: time.Since(begin).Seconds(), Bytes: n}
	if err != nil {
		o.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(o)
	if err != nil {
		return 1
	}
	return 0
}
