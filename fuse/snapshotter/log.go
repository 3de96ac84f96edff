package snapshotter

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// logTo returns a function that makes containerd's packages log to l what they are told
// to do with a context.
func logTo(l *slog.Logger) func(context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.DebugLevel)
	logger.AddHook(hook{l})
	return func(ctx context.Context) context.Context { return log.WithLogger(ctx, logrus.NewEntry(logger)) }
}

// hook hands on what is logged, one level lower: what the package says itself is for
// people, and this is for who looks closer.
type hook struct{ *slog.Logger }

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (h hook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelWarn
	}
	var attrs []any
	for name, value := range e.Data {
		attrs = append(attrs, name, value)
	}
	h.Log(context.Background(), level, e.Message, attrs...)
	return nil
}
