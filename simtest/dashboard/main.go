// Command dashboard takes pictures of the dashboard of a node, in a cluster of six members in
// two zones that pulls images: on a large screen and on a phone, light and dark. Its tests
// hold the dashboard against what the node's API says. Takes Chromium, and the program browser
// that simtest/e2e/install.sh builds.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

func main() {
	out := flag.String("o", ".", "`directory` for the pictures")
	tools := flag.String("tools", os.Getenv("GRANARY_TOOLS"), "`directory` that install.sh was given")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := takePictures(ctx, *out, filepath.Join(*tools, "browser")); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

func takePictures(ctx context.Context, out, program string) error {
	l, err := newLab(ctx, 4<<20, "eu-west-1a", "eu-west-1a", "eu-west-1a", "eu-west-1b", "eu-west-1b", "eu-west-1b")
	if err != nil {
		return err
	}
	defer l.close()
	b, err := startBrowser(program)
	if err != nil {
		return err
	}
	defer b.close()
	if err := l.pull(ctx, "docker.io/library/python:3.13", l.members...); err != nil {
		return err
	}
	if err := l.pull(ctx, "docker.io/library/redis:8", l.members[0]); err != nil {
		return err
	}
	if _, err := b.do(step{Open: l.members[0].AdminURL()}); err != nil {
		return err
	}
	pulling := make(chan error, 1)
	go func() { pulling <- l.pull(ctx, "ghcr.io/shop/checkout:v2.4.1", l.members...) }()
	if _, err := b.do(step{Until: `document.querySelectorAll("#pulls .layers li").length > 3 && document.querySelectorAll(".flow").length > 6`}); err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // for the chart to have something to show
	views := []struct {
		name string
		step
	}{
		{"desktop-light", step{Width: 1280, Height: 900}}, {"desktop-dark", step{Width: 1280, Height: 900, Dark: true}},
		{"phone-light", step{Width: 360, Height: 780}}, {"phone-dark", step{Width: 360, Height: 780, Dark: true}},
	}
	for _, v := range views {
		v.Still = true
		if _, err := b.do(v.step); err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond) // until the page has drawn itself anew
		file := filepath.Join(out, v.name+".png")
		if _, err := b.do(step{Screenshot: file}); err != nil {
			return err
		}
		fmt.Println(file)
	}
	return <-pulling
}
