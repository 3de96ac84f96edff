package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// maxErrorBody is how much of a refusal's body is kept, in bytes.
const maxErrorBody = 8 << 10

// StatusError is an answer other than the one that was hoped for. With code 404
// it is a [chunk.ErrNotFound], with 401 and 403 a [chunk.ErrDenied].
type StatusError struct {
	Method string
	URL    string // of the request to the registry or token server, without query
	Code   int    // the HTTP status
	// Header has those fields of the answer that concern a client too:
	// WWW-Authenticate, Retry-After, Warning, RateLimit-*,
	// Docker-RateLimit-Source and Content-Type; and Docker-Distribution-Api-Version, by which
	// a registry is known.
	Header http.Header
	// Body is the beginning of the answer's, at most 8 KiB: usually the error
	// JSON of the distribution specification. Neither it nor WWW-Authenticate is
	// kept when the answer came from where the registry redirected to: that is
	// no challenge of the registry, and object stores repeat signatures there.
	Body []byte
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Code, http.StatusText(e.Code))
	if code := e.OCICode(); code != "" {
		s += " (" + code + ")"
	}
	return strings.TrimSuffix(s, " ")
}

// Unwrap makes 404 a miss, and 401 and 403 a denial.
func (e *StatusError) Unwrap() error {
	switch e.Code {
	case http.StatusNotFound:
		return chunk.ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return chunk.ErrDenied
	}
	return nil
}

// OCICode returns the error code in the body (distribution-spec, "Error Codes"),
// if it looks like one, else "". The rest of the body is too free a text to be logged.
func (e *StatusError) OCICode() string {
	code, _ := e.said()
	if len(code) > 64 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return ""
	}
	return code
}

// Message returns what the body says to people, or "". It may be any text.
func (e *StatusError) Message() string {
	_, message := e.said()
	return message
}

func (e *StatusError) said() (code, message string) {
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(e.Body, &body) != nil || len(body.Errors) == 0 {
		return "", ""
	}
	return body.Errors[0].Code, body.Errors[0].Message
}

// RetryAfter returns how long the server asks to be left alone, 0 if it does not (RFC 9110, section 10.2.3).
func (e *StatusError) RetryAfter() time.Duration { return retryAfter(e.Header) }

// NoAnswerError says that a request, or the rest of its body, was not answered: by a
// registry, or by whatever is read in place of one. It is [Unreachable].
type NoAnswerError struct {
	Subject string // what was asked
	Err     error
}

func (e *NoAnswerError) Error() string { return e.Subject + ": " + e.Err.Error() }
func (e *NoAnswerError) Unwrap() error { return e.Err }

// brokenCircuitError says that a host is not asked for a while.
type brokenCircuitError struct{ err error }

func (e *brokenCircuitError) Error() string { return e.err.Error() }

// refusedElsewhereError is a refusal by a host that the registry redirected to:
// of an expired signature, say. It is no word of the registry about who may
// read, and so no [StatusError].
type refusedElsewhereError struct {
	subject, host string
	code          int
}

func (e *refusedElsewhereError) Error() string {
	return fmt.Sprintf("%s: redirected to %s: %d %s", e.subject, e.host, e.code, http.StatusText(e.code))
}

// addressError is a refusal by [Config.Control].
type addressError struct{ err error }

func (e *addressError) Error() string { return e.err.Error() }
func (e *addressError) Unwrap() error { return e.err }

// Unreachable reports whether err says that the upstream cannot be asked now: no
// answer came (for want of a connection, for a broken one, in time), or 500,
// 502, 503 or 504 did. It is false for a caller that gave up, an address that
// may not be connected to, every other status, and wrong bytes.
func Unreachable(err error) bool {
	if err == nil || Refused(err) {
		return false
	}
	var none *NoAnswerError
	var op *net.OpError
	if errors.As(err, &none) || errors.As(err, &op) {
		return true
	}
	var status *StatusError
	return errors.As(err, &status) && brokenServer(status.Code)
}

// Mute reports whether err says that the upstream has said nothing of what it was asked: it is [Unreachable], or answers no more
// questions for now (429).
func Mute(err error) bool {
	var status *StatusError
	return Unreachable(err) || errors.As(err, &status) && status.Code == http.StatusTooManyRequests
}

// Refused reports whether err is the refusal of an address by [Config.Control].
func Refused(err error) bool {
	var refused *addressError
	return errors.As(err, &refused)
}

func brokenServer(code int) bool {
	switch code {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// stalledError says that a body brought nothing for d.
func stalledError(d time.Duration) error {
	return fmt.Errorf("no byte for %v: %w", d, os.ErrDeadlineExceeded)
}

// explain names the reason why a request under ctx failed with err: the end of
// ctx, if that came first.
func explain(ctx context.Context, subject string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", subject, err)
	}
	return &NoAnswerError{subject, err}
}

// failure turns an answer into an error, and closes it.
func (a *answer) failure() error {
	defer a.body.Close()
	if a.away && (a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusForbidden) {
		return &refusedElsewhereError{a.subject(), a.at.Host, a.StatusCode}
	}
	e := &StatusError{Method: a.method, URL: a.url, Code: a.StatusCode, Header: make(http.Header)}
	for name, values := range a.Header {
		switch name {
		case "Www-Authenticate":
			if a.away {
				continue
			}
		case "Retry-After", "Warning", "Docker-Ratelimit-Source", "Content-Type", "Docker-Distribution-Api-Version":
		default:
			if !strings.HasPrefix(name, "Ratelimit-") {
				continue
			}
		}
		e.Header[name] = values
	}
	if !a.away && plainEncoding(a.Header) {
		e.Body = a.body.readSome(maxErrorBody)
	}
	return e
}
