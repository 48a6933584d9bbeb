package vm

import (
	"context"
	"fmt"
	"time"
)

// Migration is QEMU's account of one (query-migrate).
type Migration struct {
	// Status: "active", "completed", "failed", "cancelled" and others of QEMU's.
	Status string
	// ErrorDesc is set on the side that failed.
	ErrorDesc string
	// Downtime is how long the guest stood still; Total the whole migration. QEMU counts in milliseconds.
	Downtime, Total time.Duration
	// RAMBytes that were sent.
	RAMBytes uint64
}

// Ended says whether the migration has come to an end, whatever it is.
func (m *Migration) Ended() bool {
	return m.Status == "completed" || m.Status == "failed" || m.Status == "cancelled"
}

// SetCapability switches one of QEMU's migration capabilities.
func (v *VM) SetCapability(ctx context.Context, name string, on bool) error {
	return v.qmp.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": name, "state": on}},
	}, nil)
}

// SetReturnPath switches the return-path capability. Both sides need it: it is what makes a failed restore recoverable, for the source then waits
// for the destination's word before it lets go of the guest.
func (v *VM) SetReturnPath(ctx context.Context, on bool) error {
	return v.SetCapability(ctx, "return-path", on)
}

// SetParameters sets migration parameters, by QEMU's names.
func (v *VM) SetParameters(ctx context.Context, parameters map[string]any) error {
	return v.qmp.Execute(ctx, "migrate-set-parameters", parameters, nil)
}

// Migrate starts a migration to uri.
func (v *VM) Migrate(ctx context.Context, uri string) error {
	return v.qmp.Execute(ctx, "migrate", map[string]any{"uri": uri}, nil)
}

// QueryMigrate returns the state of the last migration.
func (v *VM) QueryMigrate(ctx context.Context) (*Migration, error) {
	var out struct {
		Status    string `json:"status"`
		ErrorDesc string `json:"error-desc"`
		Downtime  int64  `json:"downtime"`
		TotalTime int64  `json:"total-time"`
		RAM       struct {
			Transferred uint64 `json:"transferred"`
		} `json:"ram"`
	}
	if err := v.qmp.Execute(ctx, "query-migrate", nil, &out); err != nil {
		return nil, err
	}
	return &Migration{
		Status: out.Status, ErrorDesc: out.ErrorDesc, RAMBytes: out.RAM.Transferred,
		Downtime: time.Duration(out.Downtime) * time.Millisecond, Total: time.Duration(out.TotalTime) * time.Millisecond,
	}, nil
}

// WaitMigration waits until the migration that Migrate started has ended. A migration that failed is not an error of this call.
func (v *VM) WaitMigration(ctx context.Context) (*Migration, error) {
	return poll(ctx, "the end of the migration", func() (*Migration, bool, error) {
		m, err := v.QueryMigrate(ctx)
		return m, err == nil && m.Ended(), err
	})
}

// QueryStatus returns the VM's run state: "running", "paused", "inmigrate", "postmigrate" and others of QEMU's.
func (v *VM) QueryStatus(ctx context.Context) (string, error) {
	var out struct {
		Status string `json:"status"`
	}
	err := v.qmp.Execute(ctx, "query-status", nil, &out)
	return out.Status, err
}

// WaitStatus waits until the VM is in a run state.
func (v *VM) WaitStatus(ctx context.Context, want string) error {
	_, err := poll(ctx, "the status "+want, func() (string, bool, error) {
		s, err := v.QueryStatus(ctx)
		return s, s == want, err
	})
	return err
}

// poll asks until the answer is the one waited for.
func poll[T any](ctx context.Context, what string, ask func() (answer T, enough bool, err error)) (T, error) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		answer, enough, err := ask()
		if err != nil || enough {
			return answer, err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return answer, fmt.Errorf("waiting for %s, found %v: %w", what, answer, ctx.Err())
		}
	}
}
