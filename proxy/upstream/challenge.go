package upstream

import "strings"

// Limits of what is read of a WWW-Authenticate field; the rest is ignored.
const (
	maxChallenges     = 16
	maxChallengeParam = 16
	maxChallengeValue = 4 << 10 // bytes
)

// challenge is one challenge of a WWW-Authenticate field. Scheme and names of
// parameters are in lower case. Of a parameter that comes twice the first holds.
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads the values of WWW-Authenticate fields (RFC 9110, section
// 11.6.1). The list of challenges and the list of a challenge's parameters are
// both separated by commas; a word that is not followed by "=" begins a
// challenge. What is malformed ends its field, and the challenges before it
// hold. Unquoted values may have more characters than the grammar allows, as
// those of some registries do.
func parseChallenges(fields []string) []challenge {
	var all []challenge
	for _, f := range fields {
		s := scanner{f}
		for len(all) < maxChallenges {
			c, ok := s.challenge()
			if !ok {
				break
			}
			all = append(all, c)
		}
	}
	return all
}

// scanner is what is left of a field.
type scanner struct{ rest string }

func (s *scanner) challenge() (challenge, bool) {
	s.skip(", \t")
	c := challenge{scheme: strings.ToLower(s.token()), params: make(map[string]string)}
	if c.scheme == "" || s.rest != "" && !strings.ContainsRune(", \t", rune(s.rest[0])) {
		return c, false
	}
	s.skip(" \t")
	if s.token68() {
		return c, true
	}
	for len(c.params) < maxChallengeParam {
		before := s.rest
		s.skip(", \t")
		name, ok := s.paramName()
		if !ok {
			s.rest = before // the next challenge, or the end
			return c, true
		}
		value, ok := s.value()
		if !ok || len(value) > maxChallengeValue {
			return c, false
		}
		if _, twice := c.params[name]; !twice {
			c.params[name] = value
		}
	}
	return c, false
}

// token68 passes over credentials in the one-word form, which no scheme that is
// known here has.
func (s *scanner) token68() bool {
	end := strings.IndexFunc(s.rest, func(c rune) bool { return !isToken68(c) })
	if end < 0 {
		end = len(s.rest)
	}
	word := s.rest[:end]
	padded := strings.TrimRight(word, "=")
	after := strings.TrimLeft(s.rest[end:], " \t")
	// A word that goes on with a quote or an equals sign names a parameter.
	if padded == "" || strings.Contains(padded, "=") || after != "" && after[0] != ',' {
		return false
	}
	s.rest = s.rest[end:]
	return true
}

func (s *scanner) paramName() (string, bool) {
	name := strings.ToLower(s.token())
	s.skip(" \t")
	if name == "" || !strings.HasPrefix(s.rest, "=") {
		return "", false
	}
	s.rest = s.rest[1:]
	s.skip(" \t")
	return name, true
}

func (s *scanner) value() (string, bool) {
	if strings.HasPrefix(s.rest, `"`) {
		return s.quoted()
	}
	end := strings.IndexAny(s.rest, ", \t\"")
	if end < 0 {
		end = len(s.rest)
	}
	v := s.rest[:end]
	s.rest = s.rest[end:]
	return v, v != ""
}

// quoted reads a quoted string (RFC 9110, section 5.6.4).
func (s *scanner) quoted() (string, bool) {
	var v strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; c {
		case '"':
			s.rest = s.rest[i+1:]
			return v.String(), true
		case '\\':
			if i++; i == len(s.rest) {
				return "", false
			}
			v.WriteByte(s.rest[i])
		default:
			v.WriteByte(c)
		}
	}
	return "", false
}

func (s *scanner) token() string {
	end := strings.IndexFunc(s.rest, func(c rune) bool { return !isToken(c) })
	if end < 0 {
		end = len(s.rest)
	}
	t := s.rest[:end]
	s.rest = s.rest[end:]
	return t
}

func (s *scanner) skip(chars string) { s.rest = strings.TrimLeft(s.rest, chars) }

func isToken(c rune) bool {
	return isAlphanumeric(c) || strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}

func isToken68(c rune) bool { return isAlphanumeric(c) || strings.ContainsRune("-._~+/=", c) }

func isAlphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
