package access

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strings"
	"time"
)

// maxAuthorization bounds a credential, in bytes.
const maxAuthorization = 32 << 10

// Caller is who asks: nobody in particular (the zero value), or a credential.
// It prints as what it is, never as the credential.
type Caller struct{ authorization string }

// FromHeader returns who sends a request with header h.
func FromHeader(h http.Header) (Caller, error) {
	values := h.Values("Authorization")
	switch {
	case len(values) == 0 || len(values) == 1 && values[0] == "":
		return Caller{}, nil
	case len(values) > 1:
		return Caller{}, errors.New("more than one Authorization field")
	case len(values[0]) > maxAuthorization:
		return Caller{}, errors.New("Authorization field is too long")
	}
	return Caller{values[0]}, nil
}

// Anonymous reports whether the caller is nobody in particular.
func (c Caller) Anonymous() bool { return c.authorization == "" }

// Authorization returns the credential, to be sent to the upstream.
func (c Caller) Authorization() string { return c.authorization }

// String implements [fmt.Stringer].
func (c Caller) String() string {
	if c.Anonymous() {
		return "anonymous"
	}
	return "a credential"
}

// GoString implements [fmt.GoStringer].
func (c Caller) GoString() string { return c.String() }

// password reports whether the credential is a name and password (RFC 7617).
func (c Caller) password() bool {
	scheme, _, _ := strings.Cut(c.authorization, " ")
	return strings.EqualFold(scheme, "Basic")
}

// Token reports whether the credential is one that is no name and password.
func (c Caller) Token() bool { return !c.Anonymous() && !c.password() }

// Key identifies a caller within this process, and tells nothing else.
func (c Caller) Key() string {
	h := c.hash()
	return hex.EncodeToString(h[:])
}

// hash identifies a caller within this process.
func (c Caller) hash() [sha256.Size]byte { return sha256.Sum256([]byte(c.authorization)) }

// expires returns the time at which a token says that it ends (RFC 7519, section
// 4.1.4). The signature is the upstream's to check: a token that lies is not
// served either.
func (c Caller) expires() (time.Time, bool) {
	_, token, _ := strings.Cut(c.authorization, " ")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	p, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Expires *float64 `json:"exp"` // seconds since 1970
	}
	if json.Unmarshal(p, &claims) != nil || claims.Expires == nil || math.Abs(*claims.Expires) > math.MaxInt32*100 {
		return time.Time{}, false
	}
	return time.Unix(int64(*claims.Expires), 0), true
}

// ended reports whether the credential is a token that says to have ended by now.
func (c Caller) ended(now time.Time) bool {
	expires, ok := c.expires()
	return ok && !now.Before(expires)
}
