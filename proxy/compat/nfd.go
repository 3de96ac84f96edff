package compat

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Types of NFD's artifact and of its layer.
const (
	NFDArtifactType = "application/vnd.nfd.image-compatibility.v1alpha1"
	NFDMediaType    = "application/vnd.nfd.image-compatibility.spec.v1alpha1+yaml"
)

const (
	nfdVersion  = "v1alpha1"
	maxPattern  = 1 << 10 // bytes of a regular expression
	maxPatterns = 1 << 17 // steps of all that a document has: compiled, some MiB
)

// nfdSpec is the document; nfdSet to nfdExpression are NFD's Compatibility, GroupRule,
// FeatureMatcherTerm and MatchExpression. Rest are fields that nobody knows here: they may be
// conditions.
type (
	nfdSpec struct {
		Version         string   `yaml:"version"`
		Compatibilities []nfdSet `yaml:"compatibilities"`
	}
	nfdSet struct {
		Rules       []nfdRule      `yaml:"rules"`
		Weight      int            `yaml:"weight"`
		Tag         string         `yaml:"tag"`
		Description string         `yaml:"description"`
		Rest        map[string]any `yaml:",inline"`
	}
	nfdRule struct {
		Name          string         `yaml:"name"`
		MatchFeatures []nfdTerm      `yaml:"matchFeatures"`
		MatchAny      []nfdAny       `yaml:"matchAny"`
		Rest          map[string]any `yaml:",inline"`
	}
	nfdAny struct {
		MatchFeatures []nfdTerm      `yaml:"matchFeatures"`
		Rest          map[string]any `yaml:",inline"`
	}
	nfdTerm struct {
		Feature          string                    `yaml:"feature"`
		MatchExpressions map[string]*nfdExpression `yaml:"matchExpressions"`
		MatchName        *nfdExpression            `yaml:"matchName"`
		Rest             map[string]any            `yaml:",inline"`
	}
	nfdExpression struct {
		Op    string         `yaml:"op"`
		Value []string       `yaml:"value"`
		Rest  map[string]any `yaml:",inline"`
	}
)

// outputs are what a rule of NFD's own makes when it matches, and no conditions.
var outputs = []string{"annotations", "extendedResources", "labels", "labelsTemplate", "taints", "vars", "varsTemplate"}

// ParseNFD reads a document of NFD's.
func ParseNFD(p []byte) (*Document, error) {
	if len(p) > MaxSize {
		return nil, fmt.Errorf("NFD: more than %d bytes", MaxSize)
	}
	var spec nfdSpec
	if err := yaml.Unmarshal(p, &spec); err != nil {
		return nil, fmt.Errorf("NFD: %w", err)
	}
	if spec.Version != nfdVersion {
		return nil, fmt.Errorf("NFD: version %.40q is not %s", spec.Version, nfdVersion)
	}
	if len(spec.Compatibilities) > maxSets {
		return nil, fmt.Errorf("NFD: %d sets are more than %d", len(spec.Compatibilities), maxSets)
	}
	d, m := &Document{}, &nfdMaker{}
	for _, c := range spec.Compatibilities {
		d.sets = append(d.sets, m.set(c))
	}
	if m.conditions > maxConditions {
		return nil, fmt.Errorf("NFD: more than %d conditions", maxConditions)
	}
	return d, nil
}

// nfdMaker makes conditions of NFD's, and counts what they take.
type nfdMaker struct {
	conditions int
	patterns   int // steps of regular expressions
}

func (m *nfdMaker) set(c nfdSet) set {
	s := set{description: c.Description, weight: c.Weight}
	if c.Tag != "" {
		s.tags = []string{c.Tag}
	}
	s.conditions = m.strange(c.Rest)
	for _, r := range c.Rules {
		s.conditions = append(s.conditions, m.rule(r)...)
	}
	return s
}

// strange has a condition that cannot be judged for each field that is not known.
func (m *nfdMaker) strange(rest map[string]any) (all []condition) {
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		if !slices.Contains(outputs, name) {
			all = append(all, cannotJudge("%.80s is not a field that is known", name))
		}
	}
	m.conditions += len(all)
	return all
}

func (m *nfdMaker) rule(r nfdRule) []condition {
	all := append(m.strange(r.Rest), m.terms(r.MatchFeatures)...)
	if len(r.MatchAny) == 0 {
		return all
	}
	var alternatives []condition
	for _, a := range r.MatchAny {
		alternatives = append(alternatives, every(append(m.strange(a.Rest), m.terms(a.MatchFeatures)...)))
	}
	return append(all, func(h *Host) findings {
		var answers []findings
		for _, holds := range alternatives {
			answers = append(answers, holds(h))
		}
		return anyOf(answers)
	})
}

func (m *nfdMaker) terms(terms []nfdTerm) (all []condition) {
	for _, t := range terms {
		all = append(all, m.strange(t.Rest)...)
		if t.MatchExpressions != nil || t.MatchName == nil {
			all = append(all, m.expressions(t)...)
		}
		if t.MatchName != nil {
			all = append(all, m.name(t))
		}
	}
	return all
}

// expressions has one condition for all expressions of a term, for it may be one device that
// they are about, and one for each that makes no sense.
func (m *nfdMaker) expressions(t nfdTerm) (all []condition) {
	var wants []want
	for _, name := range slices.Sorted(maps.Keys(t.MatchExpressions)) {
		m.conditions++
		w, err := m.want(name, t.MatchExpressions[name])
		if err != nil {
			all = append(all, cannotJudge("%.80s %.80s: %v", t.Feature, name, err))
			continue
		}
		wants = append(wants, w)
	}
	if len(wants) == 0 && len(all) > 0 {
		return all
	}
	return append(all, func(h *Host) findings { return h.feature(t.Feature).findings(t.Feature, wants) })
}

func (m *nfdMaker) name(t nfdTerm) condition {
	m.conditions++
	w, err := m.want("a name", t.MatchName)
	if err != nil {
		return cannotJudge("%.80s matchName: %v", t.Feature, err)
	}
	return func(h *Host) findings { return h.feature(t.Feature).named(t.Feature, w) }
}

// want is an expression of NFD's that is well formed.
type want struct {
	name     string
	op       string
	values   []string
	numbers  []int
	patterns []*regexp.Regexp
}

// operators are NFD's, with how many values each takes: from and to.
var operators = map[string]struct{ from, to int }{
	"Any": {0, 0}, "Exists": {0, 0}, "DoesNotExist": {0, 0}, "IsTrue": {0, 0}, "IsFalse": {0, 0},
	"In": {1, maxValues}, "NotIn": {1, maxValues}, "InRegexp": {1, maxValues}, "Gt": {1, 1}, "Lt": {1, 1}, "GtLt": {2, 2},
}

func (m *nfdMaker) want(name string, e *nfdExpression) (w want, err error) {
	if e == nil {
		return w, errors.New("it is empty")
	}
	if len(e.Rest) > 0 {
		return w, fmt.Errorf("%.80s is not a field that is known", slices.Min(slices.Collect(maps.Keys(e.Rest))))
	}
	takes, known := operators[e.Op]
	if !known {
		return w, fmt.Errorf("%.80q is not an operator that is known", e.Op)
	}
	if n := len(e.Value); n < takes.from || n > takes.to {
		return w, fmt.Errorf("%s takes %d to %d values, not %d", e.Op, takes.from, takes.to, n)
	}
	w = want{name: name, op: e.Op, values: e.Value}
	for _, v := range e.Value {
		if err := m.take(&w, v); err != nil {
			return w, err
		}
	}
	if w.op == "GtLt" && w.numbers[0] >= w.numbers[1] {
		return w, fmt.Errorf("nothing is between %d and %d", w.numbers[0], w.numbers[1])
	}
	return w, nil
}

// take makes of a value what its operator compares with.
func (m *nfdMaker) take(w *want, value string) error {
	switch w.op {
	case "Gt", "Lt", "GtLt":
		n, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("%.40q is no number", value)
		}
		w.numbers = append(w.numbers, n)
	case "InRegexp":
		re, err := m.pattern(value)
		if err != nil {
			return err
		}
		w.patterns = append(w.patterns, re)
	}
	return nil
}

func (m *nfdMaker) pattern(value string) (*regexp.Regexp, error) {
	if len(value) > maxPattern {
		return nil, fmt.Errorf("a regular expression of %d bytes is longer than %d", len(value), maxPattern)
	}
	tree, err := syntax.Parse(value, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("%.40q is no regular expression", value)
	}
	if m.patterns += steps(tree); m.patterns > maxPatterns {
		return nil, errors.New("the regular expressions are too large")
	}
	return regexp.Compile(value)
}

// steps is about how large an expression is once its repetitions are written out.
func steps(tree *syntax.Regexp) int {
	n := 1 + len(tree.Rune)
	for _, sub := range tree.Sub {
		n += steps(sub)
	}
	if tree.Op == syntax.OpRepeat {
		n *= max(tree.Min, tree.Max, 1)
	}
	return n
}

func (w want) String() string {
	switch w.op {
	case "Exists", "Any":
		return w.name
	case "DoesNotExist":
		return "no " + w.name
	case "IsTrue":
		return w.name + " to be true"
	case "IsFalse":
		return w.name + " to be false"
	case "In":
		return w.name + " " + strings.Join(w.values, " or ")
	case "NotIn":
		return w.name + " not " + strings.Join(w.values, " or ")
	case "InRegexp":
		return w.name + " like " + strings.Join(w.values, " or ")
	case "Gt":
		return w.name + " above " + w.values[0]
	case "Lt":
		return w.name + " below " + w.values[0]
	}
	return fmt.Sprintf("%s between %s and %s", w.name, w.values[0], w.values[1])
}

// holds compares a value that is there, or says that it is no number where one is wanted.
func (w want) holds(value string) (holds, judged bool) {
	switch w.op {
	case "Any", "Exists":
		return true, true
	case "DoesNotExist":
		return false, true
	case "In":
		return slices.Contains(w.values, value), true
	case "NotIn":
		return !slices.Contains(w.values, value), true
	case "InRegexp":
		return slices.ContainsFunc(w.patterns, func(re *regexp.Regexp) bool { return re.MatchString(value) }), true
	case "IsTrue":
		return value == "true", true
	case "IsFalse":
		return value == "false", true
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return false, false
	}
	switch w.op {
	case "Gt":
		return n > w.numbers[0], true
	case "Lt":
		return n < w.numbers[0], true
	}
	return n > w.numbers[0] && n < w.numbers[1], true
}

// absent is the answer for what is not there: NFD takes only these two for a match.
func (w want) absent() bool { return w.op == "Any" || w.op == "DoesNotExist" }
