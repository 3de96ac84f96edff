package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/content"
	"github.com/granary-oci/granary/proxy/trace"
)

const (
	// lendBytes is how much of a file is sent under one write deadline.
	lendBytes = 4 << 20
	// slowest is the rate in bytes per second below which a client gives up its
	// place, and the memory that it holds, to others.
	slowest = 35 << 10
)

// open prepares a part of a blob to be sent: from its file where that can be
// lent, else chunk by chunk, of which the first is there when open returns. m is the mount
// that it is for; nil is none. went is told of what has been sent.
func (h *Handler) open(ctx context.Context, client *http.ResponseController, repository *Repository, b *Blob, p content.Part, m *Mount, went func(n int64)) (content.Body, error) {
	from, lendable := b.part(p.Complete)
	if lendable {
		if f, ok := b.lend(ctx, p.Offset, p.Length); ok {
			return &fileBody{ctx, h, client, b.image, f, p.Offset, p.Length, went}, nil
		}
	}
	if !p.Complete && !p.OpenEnd && p.Length < smallPart {
		return h.openSmall(ctx, repository, b, p, m)
	}
	rd := from.OpenSection(ctx, chunk.Section{Offset: p.Offset, Length: p.Length, OnDemand: p.OpenEnd, Complete: p.Complete})
	body := &chunkBody{ctx: ctx, h: h, client: client, image: b.image, rd: rd, went: went}
	if body.first, body.source, body.err = rd.Next(); body.err != nil && body.err != io.EOF {
		rd.Close()
		return nil, body.err
	}
	return body, nil
}

// sent counts bytes of an image that went to a client, by the source that they came from.
func (h *Handler) sent(ctx context.Context, image Image, source string, n int64) {
	h.registry.cfg.Served(image, "http", source, n)
	trace.Count(ctx, "granary.bytes."+source, n)
}

// smallPart is up to where a part of a blob, in bytes, is not worth the chunk that it is
// in.
const smallPart = chunk.Size / 2

// openSmall reads a small part of a blob, of which no more is fetched than that.
func (h *Handler) openSmall(ctx context.Context, repository *Repository, b *Blob, p content.Part, m *Mount) (content.Body, error) {
	t := new(travel)
	r := &pieces{repository: repository, blob: b, ctx: withTravel(ctx, t)}
	buf := make([]byte, p.Length)
	if _, err := r.ReadAt(buf, p.Offset); err != nil {
		return nil, err
	}
	return smallBody{bytesBody{bytes.NewReader(buf)}, t, func(n int64) { h.registry.served(b.image, m, t, n) }}, nil
}

// smallBody sends bytes that are in memory, and counts them.
type smallBody struct {
	bytesBody
	travel *travel
	sent   func(n int64)
}

func (b smallBody) from() string { return b.travel.sum().Source() }

func (b smallBody) WriteTo(w io.Writer) (int64, error) {
	n, err := b.bytesBody.WriteTo(w)
	b.sent(n)
	return n, err
}

// chunkBody sends what a reader gives.
type chunkBody struct {
	ctx    context.Context // of the request
	h      *Handler
	client *http.ResponseController
	image  Image
	rd     *chunk.Reader
	went   func(n int64)

	first  []byte // what was read ahead of the status, with its source and error
	source string
	err    error
}

func (c *chunkBody) from() string { return c.source }

func (c *chunkBody) WriteTo(w io.Writer) (sent int64, err error) {
	p, source, err := c.first, c.source, c.err
	for err == nil {
		extend(c.client, len(p))
		n, werr := w.Write(p)
		sent += int64(n)
		c.h.sent(c.ctx, c.image, source, int64(n))
		c.went(int64(n))
		if werr != nil {
			return sent, fmt.Errorf("send: %w", werr)
		}
		p, source, err = c.rd.Next()
	}
	if err == io.EOF {
		err = nil
	}
	return sent, err
}

func (c *chunkBody) Close() error { return c.rd.Close() }

// fileBody sends a stretch of a file, by sendfile where the connection allows it.
type fileBody struct {
	ctx    context.Context // of the request
	h      *Handler
	client *http.ResponseController
	image  Image
	f      *os.File
	off, n int64
	went   func(n int64)
}

func (b *fileBody) from() string { return "disk" }

func (b *fileBody) WriteTo(w io.Writer) (sent int64, err error) {
	_, span := trace.Start(b.ctx, "send from disk", otel.SpanKindInternal, attribute.Int64("granary.offset", b.off), attribute.Int64("granary.bytes", b.n))
	defer func() { span.End(err) }()
	b.readAhead(0)
	for sent < b.n && err == nil {
		extend(b.client, lendBytes)
		b.readAhead(sent + lendBytes)
		var k int64
		k, err = io.CopyN(w, b.f, min(b.n-sent, lendBytes))
		sent += k
		b.h.sent(b.ctx, b.image, "disk", k)
		b.went(k)
	}
	if err != nil {
		err = fmt.Errorf("send file: %w", err)
	}
	return sent, err
}

// readAhead has the kernel read the piece at from of what is to be sent: on its
// own it reads ahead by far less than sendfile could send meanwhile.
func (b *fileBody) readAhead(from int64) {
	if from < b.n {
		_ = unix.Fadvise(int(b.f.Fd()), b.off+from, min(b.n-from, lendBytes), unix.FADV_WILLNEED) // advice only
	}
}

func (b *fileBody) Close() error { return b.f.Close() }

// bytesBody sends bytes that are in memory.
type bytesBody struct{ *bytes.Reader }

func (bytesBody) Close() error { return nil }

// extend gives the client its time for the next n bytes. What is wrong with a
// connection without deadlines, the write itself will say.
func extend(client *http.ResponseController, n int) {
	_ = client.SetWriteDeadline(time.Now().Add(10*time.Second + time.Duration(n)*time.Second/slowest))
}
