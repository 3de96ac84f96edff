package rebuild

import (
	"fmt"
	"time"

	"github.com/granary-oci/granary/toc/recipe"
)

// Bytes of a tar for which a second of CPU is taken: reading it in an older layer, cutting and hashing included; and
// making the layer of it, by encoders of the standard library and of others (toc/recipe's benchmarks).
const (
	siftPace    = 130e6
	packPaceGo  = 20e6
	packPaceAll = 60e6
)

const (
	// usualRatio is how many bytes a tar is taken to have for each of its layer's, before it is known.
	usualRatio = 2.5
	// leastSaved is what part of a layer is to be saved at least.
	leastSaved = 0.1
	// shortFetch is how long fetching a layer may take without anything else being thought of: what
	// can be gained is less than what an offer may take to come.
	shortFetch = 2 * time.Second
)

// notWorthError says that a layer is better fetched as a whole.
type notWorthError struct{ reason string }

func (e *notWorthError) Error() string { return "it is better fetched: " + e.reason }

func notWorth(format string, args ...any) error { return &notWorthError{fmt.Sprintf(format, args...)} }

// decision is whether a layer is made again or fetched.
type decision struct {
	bytes bool  // less bytes are worth any time
	size  int64 // of the layer
	pace  int64 // of the line in bytes per second, 0 while it is not known
}

// fetching returns how long fetching the layer takes, 0 while that is not known.
func (d decision) fetching() time.Duration { return took(d.size, float64(d.pace)) }

func took(bytes int64, pace float64) time.Duration {
	if pace <= 0 {
		return 0
	}
	return time.Duration(float64(bytes) / pace * float64(time.Second))
}

// ask returns an error if no offer is worth being asked for, to be made use of with older layers of so many
// bytes in gzip.
func (d decision) ask(old int64) error {
	fetching := d.fetching()
	if d.bytes || fetching == 0 {
		return nil
	}
	atLeast := took(int64(usualRatio*float64(old)), siftPace) + took(int64(usualRatio*float64(d.size)), packPaceAll)
	if fetching < max(shortFetch, atLeast) {
		return notWorth("that takes %v", fetching.Round(time.Millisecond))
	}
	return nil
}

// follow returns an error if what an offer says is not worth following, when so many bytes of the tar are
// missing, and the offer had so many.
func (d decision) follow(r *recipe.Recipe, offer, missing int64) error {
	moves := offer + int64(float64(missing)*float64(d.size)/float64(max(r.TarSize(), 1)))
	if float64(moves) > (1-leastSaved)*float64(d.size) {
		return notWorth("about %d bytes of %d would have to come", moves, d.size)
	}
	if d.bytes || d.pace == 0 {
		return nil
	}
	pace := float64(packPaceAll)
	if r.Encoder.Family == recipe.Go {
		pace = packPaceGo
	}
	takes := took(moves, float64(d.pace)) + took(r.TarSize(), pace)
	if fetching := d.fetching(); takes > fetching {
		return notWorth("that takes %v, and making it of what is here %v", fetching.Round(time.Millisecond), takes.Round(time.Millisecond))
	}
	return nil
}

// limit returns how long all of it may take: by then fetching would have been over for long.
func (d decision) limit() time.Duration {
	if fetching := d.fetching(); !d.bytes && fetching > 0 {
		return min(2*fetching+10*time.Second, longestRebuild)
	}
	return longestRebuild
}

// patience returns how long an offer that is being made is waited for.
func (d decision) patience() time.Duration {
	if fetching := d.fetching(); !d.bytes && fetching > 0 {
		return min(fetching/2, longestMaking)
	}
	return longestMaking
}
