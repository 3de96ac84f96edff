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

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc/cdc"
)

const (
	// batchBytes is what a request for contents should bring, compressed. batchesAtOnce of them fill a line of
	// 50 Mbit/s whose round trip takes 80 ms eight times: the hub works between.
	batchBytes    = 1 << 20
	batchesAtOnce = 4
	batchTries    = 3 // while no answer comes, or the hub has its hands full
	batchAgain    = time.Second
)

// line is where contents of a layer come from.
type line struct {
	of   chunk.Ref // all of the layer
	m    *cdc.Map
	from Giver
}

// batches cuts chunks, by their numbers in order, into requests for contents.
func (l *line) batches(chunks []int) (all [][]int) {
	for len(chunks) > 0 {
		n := l.fit(chunks, batchBytes)
		all = append(all, chunks[:n])
		chunks = chunks[n:]
	}
	return all
}

// share returns about how many bytes of the layer chunks take.
func (l *line) share(chunks []int) int64 {
	return int64(float64(l.bytes(chunks)) * float64(l.of.Total) / float64(l.m.Size()))
}

// fit returns how many of the first of some chunks, by their numbers in order, one request is for, which is to bring no more than
// most bytes if it can. The blob has as many bytes for each of its tar as all of it.
func (l *line) fit(chunks []int, most int64) int {
	if packed := float64(l.of.Total) / float64(l.m.Size()); packed > 0 {
		most = int64(float64(most) / packed)
	}
	most = min(most, MaxContents)
	size, ranges := int64(0), 0
	for i, c := range chunks {
		if i == 0 || !isNext(chunks[i-1], c, l.m) {
			ranges++
		}
		if size += l.m.Chunks[c].Size; i > 0 && (size > most || i == MaxChunks || ranges > MaxRanges) {
			return i
		}
	}
	return len(chunks)
}

// get gives put chunks, by their numbers in order, each with its number; it is their bytes' only until it returns. The hub may compress
// them with a dictionary, of which there may be none. came is told how many bytes have come.
func (l *line) get(ctx context.Context, chunks []int, d *dictionary, came func(int64), put func(i int, q []byte) error) error {
	p, err := l.ask(ctx, chunks, d)
	came(int64(len(p)))
	if err != nil {
		return err
	}
	var words []byte
	if d != nil && dictionaryOf(p) != 0 {
		if words, err = d.bytes(ctx); err != nil { // it has been evicted, or is damaged
			return l.get(ctx, chunks, nil, came, put)
		}
	}
	err = l.unpack(chunks, p, words, put)
	switch {
	case !errors.Is(err, zstd.ErrUnknownDictionary):
		return err
	case d != nil:
		return l.get(ctx, chunks, nil, came, put)
	}
	return blame(l.from, l.of, "contents are compressed with a dictionary that nobody has named")
}

// ask asks for contents, and again for as long as that may help.
func (l *line) ask(ctx context.Context, batch []int, d *dictionary) (p []byte, err error) {
	query := url.Values{ChunksQuery: {FormatChunks(batch, l.m)}}
	if d != nil {
		query.Set(DictionaryQuery, string(d.layer))
		query.Set(DictionaryChunksQuery, d.chunks)
	}
	for try := 1; ; try++ {
		p, err = l.from.Own(ctx, l.of, ContentsPath, query, ContentsType, l.bytes(batch)+64<<10) // what does not compress becomes a little longer
		if !upstream.Unreachable(err) || try == batchTries {
			return p, err
		}
		wait, _ := comeAgain(err)
		if err := sleep(ctx, min(max(wait, batchAgain), longestNap)); err != nil {
			return nil, err
		}
	}
}

func (l *line) bytes(chunks []int) (n int64) {
	for _, i := range chunks {
		n += l.m.Chunks[i].Size
	}
	return n
}

// unpack gives put the chunks of an answer, which may be compressed with a dictionary of these words. What they are not, who gave
// them is at fault for, unless it is [zstd.ErrUnknownDictionary], after which none was given.
func (l *line) unpack(batch []int, p, words []byte, put func(i int, q []byte) error) error {
	options := []zstd.DOption{zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2 * MaxContents)}
	if len(words) > 0 {
		options = append(options, zstd.WithDecoderDictRaw(dictionaryID(words), words))
	}
	z, err := zstd.NewReader(bytes.NewReader(p), options...)
	if err != nil {
		return err
	}
	defer z.Close()
	buf := make([]byte, cdc.MaxSize)
	for k, i := range batch {
		c := &l.m.Chunks[i]
		q := buf[:c.Size]
		if _, err := io.ReadFull(z, q); k == 0 && errors.Is(err, zstd.ErrUnknownDictionary) {
			return err
		} else if err != nil {
			return blame(l.from, l.of, fmt.Sprintf("contents end before chunk %d of its map: %v", i, err))
		}
		if !c.Fits(q) {
			return blame(l.from, l.of, fmt.Sprintf("chunk %d of its map is not what the map says", i))
		}
		if err := put(i, q); err != nil {
			return err
		}
	}
	if n, err := io.ReadFull(z, make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return blame(l.from, l.of, "contents go on behind what was asked for")
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
