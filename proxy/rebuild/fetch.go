package rebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	// batchBytes is what a request for contents should bring, compressed. batchesAtOnce of them fill a line of
	// 50 Mbit/s whose round trip takes 80 ms eight times: the hub works between.
	batchBytes    = 1 << 20
	batchesAtOnce = 4
	batchTries    = 3 // while no answer comes, or the hub has its hands full
	batchAgain    = time.Second
)

// batches cuts chunks, by their numbers in order, into requests for contents. The blob has packed bytes for
// each one of its tar.
func (t *mosaic) batches(chunks []int, packed float64) (all [][]int) {
	most := int64(MaxContents)
	if packed > 0 {
		most = min(most, int64(batchBytes/packed))
	}
	first, size := 0, int64(0)
	for i, c := range chunks {
		n := t.m.Chunks[c].Size
		if i > first && (size+n > most || i-first == MaxChunks || Ranges(chunks[first:i+1], t.m) > MaxRanges) {
			all = append(all, chunks[first:i])
			first, size = i, 0
		}
		size += n
	}
	if first < len(chunks) {
		all = append(all, chunks[first:])
	}
	return all
}

// fetch gets what is missing. moved is told of bytes that came.
func (t *mosaic) fetch(ctx context.Context, of chunk.Ref, from Giver, moved func(int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(batchesAtOnce)
	for _, batch := range t.batches(t.absent(), float64(of.Total)/float64(t.m.Size())) {
		g.Go(func() error {
			p, err := t.ask(ctx, of, from, batch)
			moved(int64(len(p)))
			if err != nil {
				return err
			}
			return t.unpack(from, of, batch, p)
		})
	}
	return g.Wait()
}

// ask asks for contents, and again for as long as that may help.
func (t *mosaic) ask(ctx context.Context, of chunk.Ref, from Giver, batch []int) (p []byte, err error) {
	query := url.Values{ChunksQuery: {FormatChunks(batch, t.m)}}
	for try := 1; ; try++ {
		p, err = from.Own(ctx, of, ContentsPath, query, ContentsType, t.bytes(batch)+64<<10) // what does not compress becomes a little longer
		if !upstream.Unreachable(err) || try == batchTries {
			return p, err
		}
		wait, _ := comeAgain(err)
		if err := sleep(ctx, min(max(wait, batchAgain), longestNap)); err != nil {
			return nil, err
		}
	}
}

func (t *mosaic) bytes(chunks []int) (n int64) {
	for _, i := range chunks {
		n += t.m.Chunks[i].Size
	}
	return n
}

// unpack puts the chunks of an answer. What they are not, from is at fault for.
func (t *mosaic) unpack(from Giver, of chunk.Ref, batch []int, p []byte) error {
	z, err := zstd.NewReader(bytes.NewReader(p), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*MaxContents))
	if err != nil {
		return err
	}
	defer z.Close()
	buf := make([]byte, 0, t.bytes(batch))
	for _, i := range batch {
		c := &t.m.Chunks[i]
		q := buf[:c.Size]
		if _, err := io.ReadFull(z, q); err != nil {
			return blame(from, of, fmt.Sprintf("contents end before chunk %d of its map: %v", i, err))
		}
		if !c.Fits(q) {
			return blame(from, of, fmt.Sprintf("chunk %d of its map is not what the map says", i))
		}
		if err := t.put(c.Digest, q); err != nil {
			return err
		}
	}
	if n, err := io.ReadFull(z, make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return blame(from, of, "contents go on behind what was asked for")
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
