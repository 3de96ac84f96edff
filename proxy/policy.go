package proxy

import (
	"fmt"
	"strings"
	"time"

	"github.com/granary-oci/granary/proxy/ref"
)

// TagPolicy says for how long the last resolution of a tag is served without the
// upstream being asked. The zero value is never.
type TagPolicy struct {
	TTL time.Duration // since the upstream's last word
	Pin bool          // for good, until it is invalidated
}

// ParseTagPolicy reads "revalidate", "ttl=DURATION" or "pin".
func ParseTagPolicy(s string) (TagPolicy, error) {
	switch s {
	case "revalidate":
		return TagPolicy{}, nil
	case "pin":
		return TagPolicy{Pin: true}, nil
	}
	if v, ok := strings.CutPrefix(s, "ttl="); ok {
		if d, err := time.ParseDuration(v); err == nil && d > 0 {
			return TagPolicy{TTL: d}, nil
		}
		return TagPolicy{}, fmt.Errorf("tag policy %q: want a duration such as ttl=5m", s)
	}
	return TagPolicy{}, fmt.Errorf("tag policy %q: want revalidate, ttl=DURATION or pin", s)
}

// current reports whether what the upstream said so long ago is served now.
func (p TagPolicy) current(age time.Duration) bool {
	return p.Pin || age.Abs() < p.TTL
}

// TagRule is a policy for the tags that a pattern means.
type TagRule struct {
	Pattern ref.Pattern // of HOST/NAME:TAG, or of HOST/NAME for each of its tags
	Policy  TagPolicy
}

// ParseTagRule reads PATTERN=POLICY.
func ParseTagRule(s string) (TagRule, error) {
	pattern, policy, ok := strings.Cut(s, "=")
	if !ok || pattern == "" {
		return TagRule{}, fmt.Errorf("tag policy %q: want PATTERN=POLICY, as in docker.io/library/*=ttl=10m", s)
	}
	p, err := ParseTagPolicy(policy)
	return TagRule{ref.Pattern(pattern), p}, err
}

// policyFor returns the policy of the first rule that means a tag.
func policyFor(rules []TagRule, repo ref.Repository, tag string) TagPolicy {
	for _, r := range rules {
		if r.Pattern.Match(repo.String()+":"+tag) || r.Pattern.Match(repo.String()) {
			return r.Policy
		}
	}
	return TagPolicy{}
}
