package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// step and answer are those of the program browser.
type step struct {
	Open       string   `json:"open,omitempty"`
	Width      int64    `json:"width,omitempty"`
	Height     int64    `json:"height,omitempty"`
	Dark       bool     `json:"dark,omitempty"`
	Still      bool     `json:"still,omitempty"`
	Run        string   `json:"run,omitempty"`
	Until      string   `json:"until,omitempty"`
	Keys       []string `json:"keys,omitempty"`
	Screenshot string   `json:"screenshot,omitempty"`
}

type answer struct {
	Value    json.RawMessage `json:"value"`
	Error    string          `json:"error"`
	Problems []string        `json:"problems"`
}

// browser is a headless Chromium.
type browser struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      *bufio.Reader
	problems []string // that pages have logged
}

func startBrowser(program string) (*browser, error) {
	b := &browser{cmd: exec.Command(program)}
	b.cmd.Stderr = os.Stderr
	in, err := b.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b.in, b.out = in, bufio.NewReader(out)
	return b, b.cmd.Start()
}

// do has the browser do something, and returns the value of what it has run.
func (b *browser) do(s step) (json.RawMessage, error) {
	if err := json.NewEncoder(b.in).Encode(s); err != nil {
		return nil, err
	}
	line, err := b.out.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("browser: %w", err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("browser: %w", err)
	}
	b.problems = append(b.problems, a.Problems...)
	if a.Error != "" {
		return a.Value, errors.New(a.Error)
	}
	return a.Value, nil
}

// close ends the browser, which ends with its input.
func (b *browser) close() {
	_ = b.in.Close()
	_ = b.cmd.Wait() // it may have failed, which whoever asked it knows
}
