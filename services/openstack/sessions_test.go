package openstack

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/metrics"
)

const (
	instance = "33333333-3333-4333-8333-333333333333"
	ours     = "44444444-4444-4444-8444-444444444444"
	source   = v1.Role_ROLE_SOURCE
	dest     = v1.Role_ROLE_DESTINATION
)

func TestOnlyASessionWhoseMigrationCannotRunMayBeAborted(t *testing.T) {
	may := map[v1.Role]map[Presence][]Verdict{
		source: {Present: {Failed, Cancelled}},
		dest:   {Absent: {Failed, Cancelled, Errored, Vanished}},
	}
	for _, role := range []v1.Role{v1.Role_ROLE_UNSPECIFIED, source, dest} {
		for _, guest := range []Presence{PresenceUnknown, Present, Absent} {
			for _, v := range verdicts() {
				if got, want := mayAbort(role, v, guest), slices.Contains(may[role][guest], v); got != want {
					t.Errorf("%v, %s, presence %d: %v, want %v", role, v, guest, got, want)
				}
			}
		}
	}
}

func TestEveryStatusOfNovaIsUnderstoodOrLeftAlone(t *testing.T) {
	for status, want := range map[string]Verdict{
		"accepted": Running, "queued": Running, "preparing": Running, "running": Running, "post-migrating": Running, "migrating": Running, "pre-migrating": Running,
		"completed": Completed, "failed": Failed, "cancelled": Cancelled, "error": Errored, "": Unknown, "brand-new": Unknown, "Failed": Unknown,
	} {
		if got := verdictOf(status); got != want {
			t.Errorf("%q: %s, want %s", status, got, want)
		}
	}
}

// warden is one with a clock of its own, and what it works on.
type wardenRig struct {
	*Warden
	cloud *fakeCloud
	node  *fakeNode
	log   *book
	now   time.Time
	guest Presence
}

func newWarden(t *testing.T, role v1.Role) *wardenRig {
	t.Helper()
	r := &wardenRig{cloud: newFakeCloud(t), node: newFakeNode(t), log: new(book), now: time.Unix(1e9, 0)}
	cloud, node := r.cloud.cloud(t), r.node.client(t)
	r.Warden = &Warden{
		Host: "compute1", Grace: time.Minute, Sessions: node.Sessions, Session: node.Session, Attached: node.Attached, Abort: node.Abort,
		Migrations: cloud.LiveMigrationsOf, Guest: func(string) Presence { return r.guest },
		Record: NewRecorder("intel", "v1", time.Now), Log: r.log.logger(), Now: func() time.Time { return r.now },
	}
	r.node.sessions = []*v1.Session{{
		SessionId: []byte("0123456789abcdef"), InstanceId: instance, Role: role, SourceHost: "compute1", DestinationHost: "compute2",
		State: v1.SessionState_SESSION_STATE_ARMED, MigrationId: ours, CreatedAt: timestamppb.New(r.now),
	}}
	return r
}

// pass after some time; Nova says the status of ours, "" for no such migration.
func (r *wardenRig) pass(t *testing.T, after time.Duration, status string) {
	t.Helper()
	r.now = r.now.Add(after)
	r.cloud.change(func() {
		r.cloud.migrations = []Migration{{UUID: "55555555-5555-4555-8555-555555555555", Instance: instance, Status: "failed"}} // an earlier one
		if status != "" {
			r.cloud.migrations = append(r.cloud.migrations, Migration{UUID: ours, Instance: instance, Status: status})
		}
	})
	if err := r.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestASessionIsAbortedOnceNovaHasGivenItsMigrationUpForAWhile(t *testing.T) {
	for name, tc := range map[string]struct {
		role   v1.Role
		guest  Presence
		status string
		abort  bool
		says   string
	}{
		"failed, at the source, the server is here":        {source, Present, "failed", true, ""},
		"cancelled, at the source, the server is here":     {source, Present, "cancelled", true, ""},
		"failed, at the source, and the server is gone":    {source, Absent, "failed", false, "may have moved"},
		"error, at the source: libvirt may still be at it": {source, Present, "error", false, "libvirt may still migrate it"},
		"error, at the destination, and no QEMU":           {dest, Absent, "error", true, ""},
		"error, at the destination, with a QEMU":           {dest, Present, "error", false, "has a QEMU here"},
		"failed, at the destination, and nobody knows":     {dest, PresenceUnknown, "failed", false, "cannot see the host's QEMU"},
		"completed is nova-compute's to commit":            {dest, Absent, "completed", false, "nova-compute on compute1 commits it"},
		"a state that this release does not know":          {dest, Absent, "brand-new", false, "expires by itself"},
		"running": {dest, Absent, "running", false, ""},
		"vanished, at the destination, and no QEMU":               {dest, Absent, "", true, ""},
		"vanished, at the source: a cell of Nova's may be silent": {source, Present, "", false, "libvirt may still migrate it"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newWarden(t, tc.role)
			r.guest = tc.guest
			r.pass(t, 2*time.Minute, "running")
			r.pass(t, time.Second, tc.status)
			r.pass(t, 59*time.Second, tc.status)
			if len(r.node.aborted) > 0 {
				t.Fatal("aborted before its grace was over")
			}
			r.pass(t, time.Second, tc.status)
			r.pass(t, time.Hour, tc.status)
			if got := len(r.node.aborted) == 1; got != tc.abort || len(r.node.aborted) > 1 {
				t.Errorf("aborted %q, want %v", r.node.aborted, tc.abort)
			}
			if tc.says != "" && strings.Count(r.log.String(), tc.says) != 1 {
				t.Errorf("the log does not say %q once:\n%s", tc.says, r.log)
			}
			aborted := 0.0
			if tc.abort {
				aborted = 1
			}
			if got := sample(t, r.Record, metrics.AgentSessionsAborted); got != aborted {
				t.Errorf("%v counted", got)
			}
		})
	}
}

func TestASessionThatIsNotNovasIsLeftAlone(t *testing.T) {
	for name, change := range map[string]func(*v1.Session){
		"a migration that Nova never had": func(*v1.Session) {},
		"a migration id that is no UUID":  func(s *v1.Session) { s.MigrationId = "demo-1" },
		"a session that is not armed":     func(s *v1.Session) { s.State, s.MigrationId = v1.SessionState_SESSION_STATE_APPRAISED, "" },
		"a session that ended meanwhile":  func(s *v1.Session) { s.State = v1.SessionState_SESSION_STATE_COMMITTED },
		"an instance id that is no UUID":  func(s *v1.Session) { s.InstanceId = "../../servers" },
		"a migration of another server":   func(s *v1.Session) { s.InstanceId = "66666666-6666-4666-8666-666666666666" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newWarden(t, dest)
			r.guest = Absent
			change(r.node.sessions[0])
			status := "failed"
			if name == "a migration that Nova never had" {
				status = ""
			}
			for range 5 {
				r.pass(t, time.Hour, status)
			}
			if len(r.node.aborted) > 0 {
				t.Error("aborted")
			}
		})
	}
}

func TestTheHelperIsAWitnessToo(t *testing.T) {
	r := newWarden(t, dest)
	r.guest = Absent
	r.node.status.AttachedInstances = []string{instance}
	for range 3 {
		r.pass(t, time.Hour, "error")
	}
	if len(r.node.aborted) > 0 {
		t.Fatal("aborted with a helper attached: its QEMU is there")
	}
	r.node.change(func() { r.node.status.AttachedInstances = nil })
	r.pass(t, time.Second, "error")
	if len(r.node.aborted) != 1 {
		t.Error("not aborted once the helper was gone")
	}
}

func TestAMigrationThatComesBackToLifeStartsTheGraceAnew(t *testing.T) {
	r := newWarden(t, dest)
	r.guest = Absent
	for range 10 {
		r.pass(t, 50*time.Second, "error")
		r.pass(t, 50*time.Second, "running")
	}
	if len(r.node.aborted) > 0 {
		t.Error("aborted")
	}
}

func TestNovaThatIsDownAbortsNothing(t *testing.T) {
	r := newWarden(t, dest)
	r.guest = Absent
	r.pass(t, 2*time.Minute, "running")
	r.cloud.change(func() { r.cloud.down[Compute] = 503 })
	for range 5 {
		r.now = r.now.Add(time.Hour)
		if err := r.Pass(t.Context()); err == nil {
			t.Fatal("no error")
		}
	}
	r.cloud.change(func() { r.cloud.down[Compute] = 0 })
	r.pass(t, 0, "error")
	if len(r.node.aborted) > 0 {
		t.Error("aborted without a grace that the agent has seen")
	}
}

func TestAnAbortThatCameTooLateIsNoError(t *testing.T) {
	r := newWarden(t, dest)
	r.guest = Absent
	r.pass(t, 2*time.Minute, "error")
	r.Session = func(context.Context, []byte) (*v1.Session, error) { // it ends between the list and the abort
		r.node.change(func() { r.node.sessions = nil })
		return r.sessionOf(t, r.node)
	}
	r.pass(t, 2*time.Minute, "error")
	if len(r.node.aborted) > 0 {
		t.Error("aborted")
	}
}

// sessionOf asks for the rig's session.
func (w *Warden) sessionOf(t *testing.T, n *fakeNode) (*v1.Session, error) {
	return n.client(t).Session(t.Context(), []byte("0123456789abcdef"))
}

func TestManySessionsAreJudgedInTurns(t *testing.T) {
	r := newWarden(t, dest)
	one := r.node.sessions[0]
	r.node.sessions = nil
	for i := range 2*maxAsked + 7 {
		id, uuid := []byte("0123456789abcde\x00"), []byte(instance)
		copy(id, hex.EncodeToString([]byte{byte(i >> 8), byte(i)}))
		copy(uuid, hex.EncodeToString([]byte{byte(i >> 8), byte(i)}))
		r.node.sessions = append(r.node.sessions, &v1.Session{
			SessionId: id, InstanceId: string(uuid), Role: dest, State: one.GetState(), MigrationId: ours, CreatedAt: one.GetCreatedAt(),
		})
	}
	for range 3 {
		before := len(r.cloud.asked)
		r.pass(t, time.Hour, "")
		if n := len(r.cloud.asked) - before; n > maxAsked+1 {
			t.Errorf("%d requests in one pass", n)
		}
	}
	asked := map[string]bool{}
	for _, a := range r.cloud.asked {
		asked[a] = true
	}
	if len(asked) < len(r.node.sessions) {
		t.Errorf("%d of %d were asked for", len(asked), len(r.node.sessions))
	}
}

func TestTheProcessTableAsAWitness(t *testing.T) {
	type process struct{ comm, cmdline string }
	qemu := process{"qemu-system-x86\n", "/usr/bin/qemu-system-x86_64\x00-name\x00guest=t1\x00-uuid\x00" + instance + "\x00-incoming\x00defer\x00"}
	libvirtd := process{"libvirtd\n", "/usr/sbin/libvirtd\x00"}
	other := process{"qemu-system-x86\n", "qemu\x00-uuid\x0088888888-8888-4888-8888-888888888888\x00"}
	for name, tc := range map[string]struct {
		all  []process
		want Presence
	}{
		"its QEMU":                            {[]process{libvirtd, other, qemu}, Present},
		"its QEMU under another name":         {[]process{{"qemu:t1\n", qemu.cmdline}}, Present},
		"libvirt, and no QEMU of it":          {[]process{libvirtd, other}, Absent},
		"virtqemud, and no QEMU":              {[]process{{"virtqemud\n", ""}}, Absent},
		"a container with its own processes":  {[]process{{"safeconduct-age\n", ""}}, PresenceUnknown},
		"no processes at all":                 {nil, PresenceUnknown},
		"-uuid as the last word":              {[]process{libvirtd, {"qemu-system-x86\n", "qemu\x00-uuid"}}, Absent},
		"a program that only talks of a QEMU": {[]process{libvirtd, {"vi\n", qemu.cmdline}}, Absent},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i, p := range tc.all {
				d := filepath.Join(dir, string(rune('1'+i)))
				if err := errors.Join(os.Mkdir(d, 0o700), os.WriteFile(filepath.Join(d, "comm"), []byte(p.comm), 0o600), os.WriteFile(filepath.Join(d, "cmdline"), []byte(p.cmdline), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if got := (Processes{Proc: dir}).Guest(strings.ToUpper(instance)); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/7", 0o700), os.WriteFile(dir+"/7/comm", []byte("libvirtd"), 0o600), os.Mkdir(dir+"/8", 0o700),
		os.WriteFile(dir+"/8/comm", []byte("qemu-system-x86"), 0o600), os.Mkdir(dir+"/8/cmdline", 0o700)); err != nil {
		t.Fatal(err)
	}
	if got := (Processes{Proc: dir}).Guest(instance); got != PresenceUnknown {
		t.Errorf("a QEMU whose command line cannot be read: %d", got)
	}
}
