package flight

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestCallersShareAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		asked := 0
		answers := make(chan any, 3)
		for range 3 {
			go func() {
				v, _ := g.Do(t.Context(), "key", time.Minute, func(context.Context) (any, error) {
					asked++
					time.Sleep(time.Second)
					return asked, nil
				})
				answers <- v
			}()
		}
		for range 3 {
			if v := <-answers; v != 1 {
				t.Errorf("answer %v, want 1", v)
			}
		}
	})
}

func TestWorkOutlivesItsFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		slowly := func(ctx context.Context) (any, error) {
			select {
			case <-time.After(time.Second):
				return "done", nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		first, leave := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() { _, err := g.Do(first, "key", time.Minute, slowly); gone <- err }()
		synctest.Wait()
		second := make(chan any, 1)
		go func() { v, _ := g.Do(t.Context(), "key", time.Minute, slowly); second <- v }()
		synctest.Wait()
		leave()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		if v := <-second; v != "done" {
			t.Errorf("who stayed got %v", v)
		}
	})
}

func TestWorkEndsWithItsLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		ended := make(chan struct{})
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			_, _ = g.Do(ctx, "key", time.Hour, func(ctx context.Context) (any, error) {
				<-ctx.Done()
				close(ended)
				return nil, ctx.Err()
			})
		}()
		synctest.Wait()
		leave()
		<-ended
		// Who comes now does not join what is ending.
		v, err := g.Do(t.Context(), "key", time.Hour, func(context.Context) (any, error) { return "new", nil })
		if v != "new" || err != nil {
			t.Errorf("%v, %v", v, err)
		}
	})
}

func TestWorkHasALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		_, err := g.Do(t.Context(), "key", time.Minute, func(ctx context.Context) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// TestWhoWaitsKeepsWorkGoing, and begins none.
func TestWhoWaitsKeepsWorkGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Wait(t.Context(), "key")
		ended := error(nil)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _ = g.Do(ctx, "key", time.Minute, func(ctx context.Context) (any, error) {
				time.Sleep(time.Second)
				ended = ctx.Err()
				return nil, nil
			})
		}()
		synctest.Wait()
		go g.Wait(t.Context(), "key")
		synctest.Wait()
		cancel()
		g.Wait(t.Context(), "key")
		if ended != nil {
			t.Errorf("it ended with who began it: %v", ended)
		}
	})
}
