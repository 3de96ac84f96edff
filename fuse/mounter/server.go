package mounter

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/granary-oci/granary/fuse"
)

// ServerConfig says what a server mounts, and where.
type ServerConfig struct {
	// Dir is where the server's socket is.
	Dir string
	// Below is the directory that all mounts are in.
	Below string
	// Open returns a layer as a file system, whose contents come from the node that was
	// told to Attached last. ctx lives for as long as the mount, and Open returns soon
	// after it has ended.
	Open func(ctx context.Context, l Layer) (*fuse.FileSystem, error)
	// Attached is told of the node that has attached.
	Attached func(Node)
	// IdleFor is how long a server lives on that nobody is attached to and that has no
	// mounts. 0 is a minute.
	IdleFor time.Duration
	// Log is told of mounts that come and go. nil tells nobody.
	Log *slog.Logger
}

// Server keeps mounts. It is made by [NewServer], and lives in [Server.Run].
type Server struct {
	cfg    ServerConfig
	wakeUp chan struct{} // has an element when the server may have become idle

	serving sync.WaitGroup // what has been in mounts, until it is gone

	mu       sync.Mutex
	mounts   map[string]*mounted // by directory
	attached int                 // clients
	ending   bool
}

// mounted is a mount, from when it is asked for until it is gone. Its error is written
// before ready is closed.
type mounted struct {
	Mount
	ready  chan struct{} // closed when it is mounted, or has failed
	err    error
	ctx    context.Context
	cancel context.CancelFunc // unmounts it
	gone   chan struct{}      // closed when it is served no more
}

// NewServer returns a server, and takes away what an earlier one has left dead. The
// caller sees to it that there is no other one for the directory.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.IdleFor <= 0 {
		cfg.IdleFor = time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	taken, err := fuse.TakeAway(cfg.Below)
	if err != nil {
		return nil, err
	}
	if taken > 0 {
		cfg.Log.Info("dead mounts were taken away", "mounts", taken)
	}
	return &Server{cfg: cfg, wakeUp: make(chan struct{}, 1), mounts: make(map[string]*mounted)}, nil
}

// Run answers requests until ctx ends or nobody has needed the server for a while. Then
// it unmounts, calls leave, from when on there may be another server, and returns when
// nobody uses what was mounted any more.
func (s *Server) Run(ctx context.Context, leave func()) error {
	l, err := Listen(filepath.Join(s.cfg.Dir, socketName))
	if err != nil {
		leave()
		return err
	}
	server := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: askFor, ReadTimeout: askFor, MaxHeaderBytes: maxRequest,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err = <-failed:
	case <-ctx.Done():
	case <-s.idle(ctx):
	}
	s.takeOut()
	leave()
	_ = server.Close() // who is attached is to know now
	s.serving.Wait()
	return err
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+attachPath, s.attach)
	mux.HandleFunc("POST "+mountPath, asked(mountFor, s.mount))
	mux.HandleFunc("POST "+mountedPath, asked(askFor, s.isMounted))
	mux.HandleFunc("POST "+unmountPath, asked(askFor, s.unmount))
	mux.HandleFunc("POST "+listPath, s.list)
	return mux
}

// asked answers requests about one mount, each within a time.
func asked(limit time.Duration, do func(context.Context, Mount) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var m Mount
		if !decode(w, r, &m) {
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		switch err := do(ctx, m); {
		case errors.Is(err, ErrNotMounted):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		}
	}
}

// decode reads a request, and is false if that has been answered with why not. From then
// on the request ends with its client.
func decode(w http.ResponseWriter, r *http.Request, to any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(to)
	if err == nil {
		err = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

// attach is answered for as long as the client lives.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	var node Node
	if !decode(w, r, &node) {
		return
	}
	s.count(1)
	defer s.count(-1)
	s.cfg.Attached(node)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	<-r.Context().Done()
}

func (s *Server) count(clients int) {
	s.mu.Lock()
	s.attached += clients
	s.mu.Unlock()
	s.mayBeIdle()
}

func (s *Server) mayBeIdle() {
	select {
	case s.wakeUp <- struct{}{}:
	default:
	}
}

// idle returns a channel that is closed when nobody has needed the server for a while,
// and it takes no more mounts.
func (s *Server) idle(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-s.wakeUp: // not idle, or not for so long
			case <-time.After(s.cfg.IdleFor):
				if s.endIfIdle() {
					close(done)
					return
				}
			}
		}
	}()
	return done
}

func (s *Server) endIfIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = s.ending || s.attached == 0 && len(s.mounts) == 0
	return s.ending
}

func (s *Server) list(w http.ResponseWriter, _ *http.Request) {
	all := []Mount{}
	s.mu.Lock()
	for _, m := range s.mounts {
		all = append(all, m.Mount)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(x, y Mount) int { return strings.Compare(x.Dir, y.Dir) })
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all) // the client may be gone
}
