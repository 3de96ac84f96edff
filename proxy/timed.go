package proxy

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/trace"
)

// timed is an upstream whose runs of chunks are spans of the request that they are fetched for.
type timed struct {
	src chunk.Source
	p   *Repository
}

func (s timed) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

func (s timed) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	ctx, span := trace.Start(ctx, "fetch from upstream", otel.SpanKindClient, describe(s.p, refs)...)
	bytes := 0
	err := chunk.GetRun(ctx, s.src, refs, func(ref chunk.Ref, b []byte) error {
		bytes += len(b)
		return yield(ref, b)
	})
	span.End(err, attribute.Int("granary.bytes", bytes))
	return err
}

// describe says which chunks of what a run is.
func describe(p *Repository, refs []chunk.Ref) []attribute.KeyValue {
	if len(refs) == 0 {
		return nil
	}
	return []attribute.KeyValue{
		attribute.String("oci.repository", p.String()), attribute.String("oci.reference", string(refs[0].Blob)),
		attribute.Int64("granary.offset", refs[0].Offset), attribute.Int("granary.chunks", len(refs)),
	}
}

// readFromDisk is a span of a chunk that was found, unless it was in memory.
func readFromDisk(ctx context.Context, ref chunk.Ref, begin time.Time, source string) {
	if source == "disk" {
		trace.Past(ctx, "read from disk", begin, attribute.String("oci.reference", string(ref.Blob)),
			attribute.Int64("granary.offset", ref.Offset), attribute.Int64("granary.bytes", ref.Size))
	}
}
