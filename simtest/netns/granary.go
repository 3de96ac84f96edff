package netns

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Read returns what is at a URL, within 5 seconds and up to 16 MiB of it.
func Read(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := get(ctx, c, url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 16<<20))
}

// ReadJSON is Read into to.
func ReadJSON(ctx context.Context, c *http.Client, url string, to any) error {
	p, err := Read(ctx, c, url)
	if err != nil {
		return err
	}
	return json.Unmarshal(p, to)
}

// Metrics is a page of metrics, as Prometheus reads it.
type Metrics string

// Sum adds up the values of a metric whose labels contain match.
func (m Metrics) Sum(name, match string) (sum float64) {
	for line := range strings.Lines(string(m)) {
		labels, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if family, _, _ := strings.Cut(labels, "{"); family == name && strings.Contains(labels, match) {
			v, _ := strconv.ParseFloat(value, 64)
			sum += v
		}
	}
	return sum
}

// Pause waits, and returns why ctx has ended if it ends first.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
