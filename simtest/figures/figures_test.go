package figures

import (
	"flag"
	"maps"
	"path/filepath"
	"testing"
)

func TestMedianIsTheMiddle(t *testing.T) {
	for _, c := range []struct {
		values              []float64
		median, least, most float64
	}{
		{nil, 0, 0, 0},
		{[]float64{3}, 3, 3, 3},
		{[]float64{9, 1, 2}, 2, 1, 9},
		{[]float64{4, 1, 2, 9}, 3, 1, 9},
	} {
		f := Figure{Values: c.values}
		if least, most := f.Spread(); f.Median() != c.median || least != c.least || most != c.most {
			t.Errorf("%v: %v, %v to %v", c.values, f.Median(), least, most)
		}
	}
}

// A ratio is of what was measured in the same round: a round in which all were slow does not count twice.
func TestRatiosAreTakenRoundByRound(t *testing.T) {
	for _, c := range []struct {
		of, to []float64
		want   float64
		ok     bool
	}{
		{[]float64{10, 40, 60}, []float64{20, 20, 30}, 2, true},
		{[]float64{1, 10, 100}, []float64{2, 5, 10}, 2, true},
		{[]float64{1, 9, 5}, []float64{10, 9, 1}, 1, true}, // of medians: 5/9
		{[]float64{6, 8}, []float64{2}, 3.5, true},
		{[]float64{6}, []float64{0}, 0, false},
		{nil, []float64{1}, 0, false},
		{[]float64{1}, nil, 0, false},
	} {
		if got, ok := (Figure{Values: c.of}).Ratio(Figure{Values: c.to}); got != c.want || ok != c.ok {
			t.Errorf("%v to %v: %v, %v, want %v", c.of, c.to, got, ok, c.want)
		}
	}
}

func TestASetComparesSystemsOfOneMeasurement(t *testing.T) {
	var s Set
	fast, small := Measurement{"blob", "MB/s"}, Measurement{"blob", "MiB"}
	for _, v := range []float64{1, 2, 3} {
		s.Add(fast, "granary", 2*v)
		s.Add(fast, "nginx", v)
		s.Add(small, "nginx", 100)
	}
	s.Compare(fast, "granary", "nginx", "other")
	s.Miss(fast, "other", "it is not installed")
	if got := s.Ratios(s.All[0]); !maps.Equal(got, map[string]float64{"nginx": 2}) {
		t.Errorf("%v", got)
	}
	if n := len(s.All); n != 4 {
		t.Errorf("%d figures: %+v", n, s.All)
	}
}

func TestWhatACommandWritesIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "figures.json")
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	s := Flag(flags)
	m := Measurement{"blob", "MB/s"}
	s.Add(m, "granary", 1.5)
	if err := s.Write(); err != nil { // there is no file to write to
		t.Fatal(err)
	}
	if err := flags.Parse([]string{"-figures", file}); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(); err != nil {
		t.Fatal(err)
	}
	all, err := Read(file)
	if err != nil || len(all) != 1 || all[0].Measurement != m || all[0].Median() != 1.5 {
		t.Errorf("%+v, %v", all, err)
	}
}
