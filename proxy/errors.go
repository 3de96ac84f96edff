package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc"
)

// answer is an error as a client sees it: an HTTP status and a code of the
// distribution specification.
type answer struct {
	status int
	code   string
}

// answerTo is the one table from errors to answers. unknown is the code for what
// does not exist: MANIFEST_UNKNOWN or BLOB_UNKNOWN.
func answerTo(err error, unknown string) answer {
	var bad *ref.Error
	var said *upstream.StatusError
	var challenge *challengeError
	var none *rebuild.NoneError
	var later *rebuild.LaterError
	var timeout net.Error
	switch {
	case errors.As(err, &challenge):
		return answer{http.StatusUnauthorized, "UNAUTHORIZED"}
	case errors.As(err, &none):
		return answer{http.StatusNotFound, "UNSUPPORTED"}
	case errors.Is(err, rebuild.ErrQuery):
		return answer{http.StatusBadRequest, "UNSUPPORTED"}
	case errors.Is(err, access.ErrUnchecked), errors.Is(err, errOverloaded), errors.Is(err, errMounts), errors.As(err, &later):
		return answer{http.StatusServiceUnavailable, "UNAVAILABLE"}
	case errors.Is(err, ErrRefused), upstream.Refused(err):
		return answer{http.StatusForbidden, "DENIED"}
	case errors.As(err, &bad) && bad.Code == "NAME_UNKNOWN":
		return answer{http.StatusNotFound, bad.Code}
	case errors.As(err, &bad):
		return answer{http.StatusBadRequest, bad.Code}
	case errors.As(err, &said):
		return answerToStatus(said.Code, unknown)
	case errors.Is(err, toc.ErrUnsupported), errors.Is(err, toc.ErrMalformed), errors.Is(err, toc.ErrLimit):
		return answer{http.StatusUnprocessableEntity, "UNSUPPORTED"} // which it is the next time too
	case errors.Is(err, toc.ErrNoFile):
		return answer{http.StatusNotFound, unknown}
	case layerFault(err):
		return answer{http.StatusBadGateway, "BLOB_UNKNOWN"}
	case chunk.IsCorrupt(err):
		return answer{http.StatusBadGateway, "UNKNOWN"}
	case errors.Is(err, chunk.ErrNotFound) && !upstream.Unreachable(err): // that nobody nearer has it says nothing then
		return answer{http.StatusNotFound, unknown}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return answer{http.StatusGatewayTimeout, "UNAVAILABLE"}
	default:
		return answer{http.StatusBadGateway, "UNAVAILABLE"}
	}
}

// answerToStatus passes on what the upstream said where that is for the client
// to know, and calls the rest the upstream's fault.
func answerToStatus(status int, unknown string) answer {
	switch status {
	case http.StatusUnauthorized:
		return answer{status, "UNAUTHORIZED"}
	case http.StatusForbidden:
		return answer{status, "DENIED"}
	case http.StatusNotFound:
		return answer{status, unknown}
	case http.StatusTooManyRequests:
		return answer{status, "TOOMANYREQUESTS"}
	case http.StatusLoopDetected:
		return answer{status, "UNAVAILABLE"}
	default:
		return answer{http.StatusBadGateway, "UNAVAILABLE"}
	}
}

// errOverloaded says that a request takes more than the node has left.
var errOverloaded = errors.New("this node is gathering as many lists as it can")

// challengeError is what a caller without credentials gets for what is here but
// not public, while the upstream cannot be asked: the challenges that it made
// before.
type challengeError struct {
	challenges []string
	err        error
}

func (e *challengeError) Error() string { return "credentials are needed: " + e.err.Error() }
func (e *challengeError) Unwrap() error { return e.err }

// relayed are the headers of an upstream's refusal that are the client's too.
var relayed = []string{
	"Www-Authenticate", "Retry-After", "Warning",
	"Ratelimit-Limit", "Ratelimit-Remaining", "Docker-Ratelimit-Source",
}

// writeError answers with err in the form of the distribution specification.
func writeError(w http.ResponseWriter, err error, unknown string) {
	a := answerTo(err, unknown)
	var said *upstream.StatusError
	var challenge *challengeError
	var later *rebuild.LaterError
	switch {
	case errors.As(err, &challenge):
		w.Header()["Www-Authenticate"] = challenge.challenges
	case errors.As(err, &later):
		w.Header().Set("Retry-After", strconv.Itoa(later.After))
	case errors.As(err, &said) && said.Code == a.status:
		for _, name := range relayed {
			for _, v := range said.Header.Values(name) {
				w.Header().Add(name, v)
			}
		}
	}
	if a.status == http.StatusServiceUnavailable && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "5")
	}
	writeAnswer(w, a, err.Error())
}

func writeAnswer(w http.ResponseWriter, a answer, message string) {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	h := w.Header()
	for _, name := range []string{"Etag", "Cache-Control", "Content-Length", "Docker-Content-Digest"} {
		h.Del(name) // set for the content that is not coming
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(map[string][]one{"errors": {{a.code, message}}})
}
