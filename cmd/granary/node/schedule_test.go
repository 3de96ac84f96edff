package node

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // for machines that know no place
)

// inBerlin is a clock on the wall there.
func inBerlin(t testing.TB, text string) time.Time {
	t.Helper()
	place, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at, err := time.ParseInLocation("2006-01-02 15:04", text, place)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestTimesAreThoseOfTheNodesClock(t *testing.T) {
	for _, c := range []struct{ now, text, want string }{
		{"2026-03-01 22:00", "23:30", "2026-03-01T23:30:00+01:00"},
		{"2026-03-01 22:00", "02:00", "2026-03-02T02:00:00+01:00"},
		{"2026-03-01 22:00", "22:00", "2026-03-02T22:00:00+01:00"},
		{"2026-03-28 22:00", "07:00", "2026-03-29T07:00:00+02:00"}, // the night is an hour shorter
		{"2026-12-31 23:59", "00:00", "2027-01-01T00:00:00+01:00"},
		{"2026-03-01 22:00", "2026-03-02T02:00:00-05:00", "2026-03-02T02:00:00-05:00"},
		{"2026-03-01 22:00", "2026-04-01T20:59:00Z", "2026-04-01T20:59:00Z"},
		{"2026-03-01 22:00", "2026-04-01T21:01:00Z", "more than 31 days"},
		{"2026-03-01 22:00", "2026-03-01T20:59:59Z", "is past"},
		{"2026-03-01 22:00", "24:00", "no time"}, {"2026-03-01 22:00", "2am", "no time"}, {"2026-03-01 22:00", "2026-03-02T02:00:00", "no time"},
	} {
		at, err := parseWhen(c.text, inBerlin(t, c.now))
		if got := at.Format(time.RFC3339); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("at %s %s is %s, error %v; want %s", c.now, c.text, got, err, c.want)
		}
	}
}

func FuzzWhen(f *testing.F) {
	for _, text := range []string{"02:00", "2026-03-02T02:00:00-05:00", "2026-03-02T02:00:00.5Z", "0:0", ""} {
		f.Add(text)
	}
	now := inBerlin(f, "2026-03-28 22:00")
	f.Fuzz(func(t *testing.T, text string) {
		if at, err := parseWhen(text, now); err == nil && (!at.After(now) || at.Sub(now) > scheduleAhead) {
			t.Errorf("%q is %s", text, at)
		}
	})
}

func TestAPreheatWaitsForItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := func(at, notBefore time.Duration, ended bool) (time.Duration, error) {
			ctx, end := context.WithCancelCause(t.Context())
			cancel := func() { end(errEnded) }
			defer cancel()
			begin := time.Now().Round(0)
			p := &preheating{ctx: ctx, at: begin.Add(at)}
			if notBefore != 0 {
				p.notBefore = begin.Add(notBefore)
			}
			if ended {
				time.AfterFunc(time.Hour, cancel)
			}
			err := p.await()
			return time.Since(begin), err
		}
		for name, c := range map[string]struct {
			at, notBefore time.Duration
			ended         bool
			want          time.Duration
			err           string
		}{
			"tonight":           {at: 8*time.Hour + time.Second, want: 8*time.Hour + time.Second},
			"while it was down": {at: -23 * time.Hour},
			"before others":     {at: -time.Hour, notBefore: time.Minute, want: time.Minute},
			"missed":            {at: -25 * time.Hour, err: "missed"},
			"ended":             {at: 8 * time.Hour, ended: true, want: time.Hour, err: "ended"},
		} {
			took, err := waits(c.at, c.notBefore, c.ended)
			if took != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: after %s, error %v", name, took, err)
			}
		}
	})
}

// TestTheScheduleIsBounded holds what a node takes up from a file that may hold anything, and how much it
// schedules.
func TestTheScheduleIsBounded(t *testing.T) {
	dir := t.TempDir()
	open := func() *Node {
		n, err := New(Config{
			DataConfig:   DataConfig{DataDir: dir, DefaultUpstream: "registry.test"},
			ListenConfig: ListenConfig{Listen: []string{"127.0.0.1:0"}},
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := open()
	for i := range maxScheduled + 1 {
		if _, err := n.preheat(Preheat{Refs: []string{"app"}, At: "02:00"}); (err == nil) != (i < maxScheduled) {
			t.Errorf("the %dth: %v", i+1, err)
		}
	}
	if _, err := n.preheat(Preheat{Refs: []string{"app"}}); err != nil {
		t.Errorf("what is to begin at once has to wait for the schedule: %v", err)
	}
	if _, err := n.preheat(Preheat{Refs: []string{"app"}, At: "02:00", Authorization: map[string]string{"registry.test": "Bearer secret"}}); err == nil || !strings.Contains(err.Error(), "credentials are kept nowhere") {
		t.Errorf("with credentials: %v", err)
	}
	if all := n.Status().Preheats; len(all) != maxScheduled+1 || all[1].State != "scheduled" || all[1].At.IsZero() {
		t.Errorf("shown are %d: %+v", len(all), all)
	}
	n.Close()
	path := filepath.Join(dir, scheduleName)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(p), "secret") || strings.Contains(string(p), "authorization") {
		t.Errorf("credentials are kept: %s", p)
	}
	n = open()
	if all := n.Status().Preheats; len(all) != maxScheduled || all[0].Refs[0] != "registry.test/app:latest" {
		t.Errorf("after a restart there are %d", len(all))
	}
	n.Close()
	var kept []scheduled
	if err := json.Unmarshal(p, &kept); err != nil {
		t.Fatal(err)
	}
	kept = append(kept[:1], scheduled{At: time.Now(), Preheat: Preheat{Refs: []string{"NO NAME"}}})
	some, _ := json.Marshal(kept)
	for text, want := range map[string]int{
		"": 0, "null": 0, "[{}]": 0, "{": 0, `[{"preheat":{"refs":["app"]}}]`: 0, `[{"at":"9999-01-01T00:00:00Z","preheat":{"refs":["app"]}}]`: 0, string(some): 1, strings.Replace(string(p), "[", "["+string(p[1:len(p)-1])+",", 1): maxScheduled,
		strings.Repeat(" ", maxScheduleFile+1): 0,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n := open()
		if got := len(n.Status().Preheats); got != want {
			t.Errorf("of %.60q %d are taken up, want %d", text, got, want)
		}
		n.Close()
	}
}
