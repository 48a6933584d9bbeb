package session

// watchBuffer is how many changes a watcher may lag behind before it is dropped.
const watchBuffer = 256

// Watcher receives every change of a table. C is closed when the watcher is stopped, or dropped because it lags.
type Watcher struct {
	C     <-chan Change
	c     chan Change
	table *Table
}

// Watch returns a watcher and the sessions as they are at that moment.
func (t *Table) Watch() (*Watcher, []Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := &Watcher{c: make(chan Change, watchBuffer), table: t}
	w.C = w.c
	t.watchers[w] = struct{}{}
	var now []Record
	for _, s := range t.attempts {
		if !s.rec.State.Ended() {
			now = append(now, s.rec.clone())
		}
	}
	return w, now
}

// Stop ends the watcher.
func (w *Watcher) Stop() {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	w.dropLocked()
}

func (w *Watcher) dropLocked() {
	if _, ok := w.table.watchers[w]; ok {
		delete(w.table.watchers, w)
		close(w.c)
	}
}

func (t *Table) announceLocked(s *Session, previous State, e Event) {
	change := Change{Session: s.rec.clone(), Previous: previous, Event: e, At: t.now()}
	t.notify(change)
	for w := range t.watchers {
		select {
		case w.c <- change:
		default:
			w.dropLocked()
		}
	}
}
