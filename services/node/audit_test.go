package node

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/audit"
	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/node/local"
	"github.com/safeconduct/safeconduct/services/node/metrics"
	"github.com/safeconduct/safeconduct/tee"
)

func (n *testNode) auditDir() string { return filepath.Join(n.cfg.StateDir, "audit") }

// audited are the records of the node's audit log.
func (n *testNode) audited(t testing.TB) []audit.Record {
	t.Helper()
	return auditedIn(t, n.auditDir())
}

func auditedIn(t testing.TB, dir string) []audit.Record {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var out []audit.Record
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
			var r audit.Record
			if err := json.Unmarshal(s.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
	}
	return out
}

// inBrief is what a record says, without who and when.
func inBrief(r audit.Record) string {
	return strings.Trim(regexp.MustCompile(" +").ReplaceAllString(strings.Join([]string{r.Event, r.Method, r.Migration, r.State, r.Verdict, r.Reason, r.Signed}, " "), " "), " ")
}

func briefs(all []audit.Record) []string {
	var out []string
	for _, r := range all {
		out = append(out, inBrief(r))
	}
	return out
}

func TestTheAuditLogTellsAMigrationOnBothNodes(t *testing.T) {
	r := newRig(t)
	r.src.escrowed(t, "", "a passphrase")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-openstack-request-id", "req-7d2f0a52-6f8e-4c1c-a5ad-3b9e5a0c1f11")
	s, err := r.src.establish(ctx, "compute2", v1.Role_ROLE_SOURCE)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.src.arm("m1"); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []v1.StateType{permanent, volatile} {
		ciphertext, err := r.src.protect(kind, random(100))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.dst.unprotect(kind, ciphertext); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	_, err = r.src.protect(permanent, random(100))
	want(t, "after the end", err, v1.Reason_REASON_NO_ARMED_SESSION)

	wantSource := []string{
		"start", "call SecretService/Escrow allowed", "call MigrationService/Establish allowed", "call MigrationService/Arm m1 allowed",
		"call CryptoService/ProtectState allowed", "call CryptoService/ProtectState allowed", "session m1 committed", "receipt m1 committed both",
		"call MigrationService/Commit m1 allowed", "call CryptoService/ProtectState refused NO_ARMED_SESSION",
	}
	all := r.src.audited(t)
	if got := briefs(all); !slices.Equal(got, wantSource) {
		t.Errorf("the source's log:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantSource, "\n"))
	}
	for _, rec := range all {
		c := rec.Caller
		if rec.Event == audit.EventCall && (c == nil || c.UID != uint32(os.Getuid()) || c.PID != int32(os.Getpid()) || c.Process == "") {
			t.Errorf("%s: the caller is %+v", inBrief(rec), c)
		}
		if rec.Event == audit.EventReceipt && (len(rec.Receipt) != 64 || rec.Instance != vmID || rec.Peer != "compute2") {
			t.Errorf("the receipt: %+v", rec)
		}
		if rec.Method == "MigrationService/Establish" &&
			(rec.Request != "req-7d2f0a52-6f8e-4c1c-a5ad-3b9e5a0c1f11" || rec.Session != fmt.Sprintf("%x", s.GetSessionId()) || rec.Peer != "compute2") {
			t.Errorf("establish: %+v", rec)
		}
	}
	raw, err := os.ReadFile(filepath.Join(r.src.auditDir(), "audit-000000000001.jsonl"))
	if err != nil || bytes.Contains(raw, []byte("a passphrase")) {
		t.Errorf("the log holds a secret (%v)", err)
	}
	eventually(t, "the destination's log tells the same", func() bool {
		got := briefs(r.dst.audited(t))
		for _, w := range []string{
			"call PeerService/Handshake allowed", "call PeerService/Transfer allowed", "call PeerService/Arm m1 allowed",
			"call CryptoService/UnprotectState allowed", "session m1 committed", "receipt m1 committed both", "call PeerService/Conclude m1 allowed",
		} {
			if !slices.Contains(got, w) {
				return false
			}
		}
		return true
	})

	// The node tells the head; what a stopped node leaves verifies against it.
	status, err := r.src.admin().GetStatus(t.Context(), &v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	head := audit.Head{Sequence: status.GetAuditSequence(), Digest: audit.Digest(status.GetAuditDigest())}
	r.src.stop()
	report, err := audit.Verify(r.src.auditDir(), &head)
	if err != nil || !report.Anchored || report.Records != uint64(len(wantSource))+2 { // the helper that went away, and "stop"
		t.Errorf("%+v, %v", report, err)
	}
}

func TestARefusalInsideAnAnswerIsRecordedAsOne(t *testing.T) {
	r := newRig(t)
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	r.armed(t, "m1")
	got, err := r.src.attestation().Preflight(t.Context(), &v1.PreflightRequest{PeerHost: "compute9"})
	if err != nil || got.GetAccepted() {
		t.Fatalf("%v, %v", got, err)
	}
	if all := briefs(r.src.audited(t)); all[len(all)-1] != "call AttestationService/Preflight refused UNKNOWN_PEER" {
		t.Errorf("got %v", all)
	}
}

func TestACallerThatIsNotAllowedIsRecordedWhateverItAsked(t *testing.T) {
	r := newRig(t)
	if _, err := r.src.migration().List(t.Context(), &v1.ListRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := briefs(r.src.audited(t)); len(got) != 1 {
		t.Errorf("reading is recorded: %v", got)
	}
	marks, err := sealed.NewStore(t.TempDir(), tee.SealKeys{Enclave: r.src.enclave})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{now: time.Now, log: discardLog().Logger, metrics: metrics.New("simulated", "v"), health: newHealth(func() time.Duration { return 0 }, 0)}
	cfg := &config.Config{Mode: tee.ModeSimulated, Host: "compute1", Audit: config.Audit{Dir: t.TempDir()}}
	if err := n.openAudit(t.Context(), cfg, marks); err != nil {
		t.Fatal(err)
	}
	caller := local.Caller{UID: 1234, GID: 5, PID: 6, Process: "curious"}
	ctx := grpcpeer.NewContext(t.Context(), &grpcpeer.Peer{AuthInfo: caller})
	n.recordCall(metrics.Local, &served{
		ctx: ctx, method: "MigrationService/List", request: &v1.ListRequest{}, err: refusal.New(v1.Reason_REASON_CALLER_NOT_ALLOWED, "uid 1234 may not"),
	})
	if err := n.audit.log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := auditedIn(t, cfg.Audit.Dir)
	if len(all) != 1 || inBrief(all[0]) != "call MigrationService/List refused CALLER_NOT_ALLOWED" || *all[0].Caller != (audit.Caller{UID: 1234, GID: 5, PID: 6, Process: "curious"}) {
		t.Errorf("got %+v", all)
	}
}

// Every method that the servers have either is recorded, or is known to change and release nothing that matters.
func TestEveryMethodIsRecordedOrKnownNotToBe(t *testing.T) {
	onlyRead := []string{
		"MigrationService/Get", "MigrationService/List", "MigrationService/Watch", "SecretService/ListSecrets",
		"AttestationService/GetEvidence", "AttestationService/Appraise", "IntegrityService/GetLog", "IntegrityService/Measure", "IntegrityService/GetPolicy",
		"ReceiptService/ListReceipts", "ReceiptService/ExportReceipt", "AdminService/GetStatus", "AdminService/ListStates",
		"CryptoService/RecordState", // every write of a vTPM: see recordedMethods
	}
	var all []string
	for _, d := range []grpc.ServiceDesc{
		v1.MigrationService_ServiceDesc, v1.CryptoService_ServiceDesc, v1.SecretService_ServiceDesc, v1.AttestationService_ServiceDesc,
		v1.IntegrityService_ServiceDesc, v1.ReceiptService_ServiceDesc, v1.AdminService_ServiceDesc, v1.PeerService_ServiceDesc,
	} {
		service := strings.TrimPrefix(d.ServiceName, "safeconduct.v1.")
		for _, m := range d.Methods {
			all = append(all, service+"/"+m.MethodName)
		}
		for _, s := range d.Streams {
			all = append(all, service+"/"+s.StreamName)
		}
	}
	for _, m := range all {
		if slices.Contains(recordedMethods(), m) == slices.Contains(onlyRead, m) {
			t.Errorf("%s: say whether the audit log records it", m)
		}
	}
	for _, m := range append(recordedMethods(), onlyRead...) {
		if !slices.Contains(all, m) {
			t.Errorf("there is no method %s", m)
		}
	}
}

func TestStrangersCannotFillTheAuditLog(t *testing.T) {
	r := newRig(t)
	hostile := r.dst.peerClient(t)
	for range 200 {
		_, err := hostile.Arm(t.Context(), &v1.PeerServiceArmRequest{SessionId: random(16)})
		want(t, "a stranger", err, v1.Reason_REASON_PEER_REFUSED)
	}
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	var strangers int
	var suppressed uint64
	eventually(t, "the handshake is recorded, and what was left out before it", func() bool {
		strangers, suppressed = 0, 0
		for _, rec := range r.dst.audited(t) {
			if rec.Reason == "NO_SESSION" {
				strangers++
			}
			suppressed += rec.Suppressed
		}
		return suppressed > 0
	})
	if strangers > 100 || strangers < strangersBurst || strangers+int(suppressed) != 200 {
		t.Errorf("%d recorded, %d left out", strangers, suppressed)
	}
}

func TestANodeDoesNotStartWithAnAuditLogThatWasCutOff(t *testing.T) {
	r := newRig(t)
	r.armed(t, "m1")
	r.src.stop()
	file := filepath.Join(r.src.auditDir(), "audit-000000000001.jsonl")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(raw, []byte("\n"))
	if err := os.WriteFile(file, bytes.Join(lines[:2], nil), 0o600); err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), r.src.cfg, r.src.enclave, r.src.root, discardLog(), r.src.now)
	if err == nil || !strings.Contains(err.Error(), "cut off at the end") || !strings.Contains(err.Error(), "keep it as evidence") {
		t.Errorf("got %v", err)
	}
}

func TestFilesOfTheAuditLogAreRotatedAsConfigured(t *testing.T) {
	r := newRig(t, func(r *rig, _ *policy.Policy) {
		r.src.cfg.Audit = config.Audit{Dir: filepath.Join(r.src.dir, "elsewhere"), MaxFileMiB: 1, MaxFiles: 2}
	})
	if files, _ := filepath.Glob(filepath.Join(r.src.dir, "elsewhere", "audit-*.jsonl")); len(files) != 1 {
		t.Errorf("audit.dir holds %v", files)
	}
}

func TestTheLogLevelChangesAtRunTime(t *testing.T) {
	r := newRig(t)
	set := func(level string) (*v1.SetLogLevelResponse, error) {
		return r.src.admin().SetLogLevel(t.Context(), &v1.SetLogLevelRequest{Level: level})
	}
	for _, step := range []struct{ set, level, previous string }{
		{"", "info", "info"}, {"debug", "debug", "info"}, {"", "debug", "debug"}, {"error", "error", "debug"},
	} {
		got, err := set(step.set)
		if err != nil || got.GetLevel() != step.level || got.GetPrevious() != step.previous {
			t.Errorf("%q: %v, %v", step.set, got, err)
		}
	}
	for _, bad := range []string{"loud", "DEBUG", "info+2"} {
		_, err := set(bad)
		want(t, bad, err, v1.Reason_REASON_INVALID_REQUEST)
	}
}
