package node

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/local"
)

// maxHelpers bounds attached helpers; a host runs far fewer VMs.
const maxHelpers = 4096

// helpers says which connection is the helper of which VM's vTPM. What the enclave decrypts for a VM goes to that connection only, and a VM without
// one is not migrated: were its swtpm run without the helper, its state would cross in clear. The zero value has none.
type helpers struct {
	mu       sync.Mutex
	attached map[string]*attachment
	changed  chan struct{} // closed and replaced when a helper comes or goes
}

const (
	// arrivalPatience is how long Arm waits for a helper: after a restart of the node service they attach again within a second.
	arrivalPatience = 2 * time.Second
	// departurePatience is how long a helper waits for the one before it to go: a VM that is started anew, or comes back, is quicker than the end
	// of its last connection.
	departurePatience = time.Second
)

// change tells everybody who waits. The lock is held.
func (h *helpers) change() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// wait waits until what holds, at most for patience. The lock is held when what is called, and when it has returned true.
func (h *helpers) wait(ctx context.Context, patience time.Duration, what func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		h.mu.Lock()
		if what() {
			return true
		}
		if h.changed == nil {
			h.changed = make(chan struct{})
		}
		changed := h.changed
		h.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// attachment is one helper, for as long as its Attach stream lives. The fields belong to the calls of its connection, which take turns.
type attachment struct {
	connection *local.Connection
	turn       sync.Mutex
	save       localSave
}

// attach makes the caller's connection the VM's helper until detach is called.
func (h *helpers) attach(ctx context.Context, instance string) (detach func(), err error) {
	caller, ok := local.From(ctx)
	if !ok {
		return nil, refusal.New(v1.Reason_REASON_CALLER_NOT_ALLOWED, "the caller is unknown")
	}
	if !h.wait(ctx, departurePatience, func() bool { return h.attached[instance] == nil }) {
		return nil, refusal.New(v1.Reason_REASON_HELPER_CONFLICT, "another helper is attached for instance %s", instance).On(instance)
	}
	defer h.mu.Unlock()
	if len(h.attached) >= maxHelpers {
		return nil, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "%d helpers are attached already", maxHelpers)
	}
	if h.attached == nil {
		h.attached = map[string]*attachment{}
	}
	a := &attachment{connection: caller.Connection}
	h.attached[instance] = a
	h.change()
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.attached, instance)
		h.change()
	}, nil
}

// of returns the attachment of the VM's helper, which must be the caller.
func (h *helpers) of(ctx context.Context, instance string) (*attachment, error) {
	caller, ok := local.From(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch a := h.attached[instance]; {
	case a == nil:
		return nil, errNoHelper(instance)
	case !ok || a.connection != caller.Connection:
		return nil, refusal.New(v1.Reason_REASON_HELPER_CONFLICT, "pid %d is not the helper that is attached for instance %s", caller.PID, instance).On(instance)
	default:
		return a, nil
	}
}

func errNoHelper(instance string) *refusal.Refusal {
	return refusal.New(v1.Reason_REASON_HELPER_NOT_ATTACHED, "no helper is attached for instance %s: its swtpm does not run behind safeconduct-swtpm", instance).
		On(instance)
}

// await waits, for a moment, until the VM has a helper.
func (h *helpers) await(ctx context.Context, instance string) error {
	if !h.wait(ctx, arrivalPatience, func() bool { return h.attached[instance] != nil }) {
		return errNoHelper(instance)
	}
	h.mu.Unlock()
	return nil
}

// instances are the VMs that have a helper, sorted.
func (h *helpers) instances() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.attached))
}

// Attach implements CryptoService.
func (c *cryptoServer) Attach(req *v1.AttachRequest, stream grpc.ServerStreamingServer[v1.AttachResponse]) error {
	instance := req.GetInstanceId()
	if err := checkInstance(instance); err != nil {
		return err
	}
	detach, err := c.helpers.attach(stream.Context(), instance)
	if err != nil {
		return err
	}
	defer detach()
	if err := stream.Send(&v1.AttachResponse{LocalSave: c.localSave()}); err != nil {
		return err
	}
	c.log.Info("helper attached", "instance", instance)
	select {
	case <-stream.Context().Done():
		c.log.Info("helper detached", "instance", instance)
		return stream.Context().Err()
	case <-c.stopping:
		return refusal.New(v1.Reason_REASON_RESTARTED, "the node service stops")
	}
}
