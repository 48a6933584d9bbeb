package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Golden output of every command that asks the node service, for people and for machines.
func TestWhatTheCommandsPrint(t *testing.T) {
	sim, intel := v1.Mode_MODE_SIMULATED, v1.Mode_MODE_INTEL
	evidence := &v1.GetEvidenceResponse{Mode: sim, Quote: []byte("quote"), Host: "compute1"}
	armed, ended := sessionAs(0x11, v1.SessionState_SESSION_STATE_ARMED, nil), sessionAs(0x22, v1.SessionState_SESSION_STATE_ABORTED, hostile())
	intelEvidence := &v1.GetEvidenceResponse{Mode: intel, Quote: []byte("quote"), Host: "compute1"}
	tolerated := attestedAs(intel, "compute1")
	tolerated.TcbStatus, tolerated.AdvisoryIds, tolerated.Debug = "SWHardeningNeeded", []string{"INTEL-SA-00615"}, true
	for name, c := range map[string]struct {
		args []string
		node *fakeNode
		code int
	}{
		"attest-accepted": {[]string{"attest"}, &fakeNode{evidence: intelEvidence,
			appraise: &v1.AppraiseResponse{Accepted: true, Attested: attestedAs(intel, "compute1")}}, ExitOK},
		"attest-tolerated": {[]string{"attest"}, &fakeNode{evidence: intelEvidence, appraise: &v1.AppraiseResponse{Accepted: true,
			Attested: tolerated}}, ExitOK},
		"attest-simulated": {[]string{"attest"}, &fakeNode{evidence: evidence,
			appraise: &v1.AppraiseResponse{Accepted: true, Attested: attestedAs(sim, "compute1")}}, ExitOK},
		"attest-refused": {[]string{"attest", "--host", "compute9"}, &fakeNode{evidence: evidence, appraise: &v1.AppraiseResponse{
			Attested: attestedAs(sim, "compute9"), Refusals: []*v1.Refusal{tcbRefusal(),
				refusal.New(v1.Reason_REASON_PLATFORM_NOT_ENROLLED, "no platform is enrolled for host compute9").On("compute9").Want("no platform",
					"an enrolled platform").Proto(),
				refusal.New(v1.Reason_REASON_SESSION_CONFLICT, "something that no row is for").Proto(),
			}}}, ExitRefused},
		"attest-not-authentic": {[]string{"attest"}, &fakeNode{evidence: evidence, appraise: &v1.AppraiseResponse{Refusals: []*v1.Refusal{
			refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote is not verified").On("quote").Want("a", "b").Proto()}}}, ExitNotAuthentic},

		"preflight-accepted": {[]string{"preflight", "compute2"}, &fakeNode{preflight: preflightAs(intel, 3, nil)}, ExitOK},
		"preflight-simulated": {[]string{"preflight", "compute2", "--role", "destination"},
			&fakeNode{preflight: preflightAs(sim, 3, nil)}, ExitOK},
		"preflight-hostile": {[]string{"preflight", "compute2"}, &fakeNode{preflight: preflightAs(sim, 2, hostile())}, ExitRefused},
		"preflight-tcb":     {[]string{"preflight", "compute2"}, &fakeNode{preflight: preflightAs(intel, 1, tcbRefusal())}, ExitRefused},
		"preflight-forged": {[]string{"preflight", "compute2"}, &fakeNode{preflight: preflightAs(intel, 1,
			refusal.New(v1.Reason_REASON_QUOTE_INVALID, "the quote is not verified").Proto())}, ExitNotAuthentic},
		"preflight-peer-refused": {[]string{"preflight", "compute2"}, &fakeNode{preflight: preflightAs(sim, 3,
			refusal.New(v1.Reason_REASON_PEER_REFUSED, "compute2 refused").Proto())}, ExitRefused},
		"preflight-unreachable": {[]string{"preflight", "compute2"}, &fakeNode{preflight: preflightAs(sim, 0,
			refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "compute2 does not answer").Proto())}, ExitUnreachable},

		"status":           {[]string{"status"}, &fakeNode{status: statusAs(intel, nil)}, ExitOK},
		"status-simulated": {[]string{"status"}, &fakeNode{status: statusAs(sim, nil)}, ExitOK},
		"status-refused":   {[]string{"status"}, &fakeNode{status: statusAs(sim, tcbRefusal())}, ExitRefused},
		"reload-unchanged": {[]string{"reload"}, &fakeNode{reload: &v1.ReloadResponse{PolicySvn: 7, PolicyDigest: fill(0xee, 32)}}, ExitOK},
		"reload-aborted": {[]string{"reload"}, &fakeNode{reload: &v1.ReloadResponse{
			PolicySvn: 8, PolicyDigest: fill(0xef, 32), PolicyChanged: true, Aborted: []*v1.Session{ended}}}, ExitOK},
		"drain": {[]string{"drain", "--deadline", "1m"}, &fakeNode{drain: []*v1.DrainResponse{
			{OpenSessions: 2}, {OpenSessions: 1}, {Drained: true, Aborted: []*v1.Session{ended}}}}, ExitOK},

		"migrations-list":     {[]string{"migrations", "list"}, &fakeNode{sessions: []*v1.Session{armed, ended}}, ExitOK},
		"migrations-list-all": {[]string{"migrations", "list", "--all"}, &fakeNode{sessions: []*v1.Session{armed, ended}}, ExitOK},
		"migrations-none":     {[]string{"migrations", "list"}, &fakeNode{}, ExitOK},
		"migrations-show":     {[]string{"migrations", "show", "2222"}, &fakeNode{sessions: []*v1.Session{armed, ended}}, ExitOK},
		"migrations-watch": {[]string{"migrations", "watch"}, &fakeNode{changes: []*v1.WatchResponse{
			{Session: armed, At: at(0)}, {Session: ended, PreviousState: v1.SessionState_SESSION_STATE_ARMED, At: at(0)}}}, ExitOK},
		"migrations-abort": {[]string{"migrations", "abort", strings.Repeat("22", 16)}, &fakeNode{sessions: []*v1.Session{armed, ended}}, ExitOK},

		"secrets-list": {[]string{"secrets", "list"}, &fakeNode{secrets: &v1.ListSecretsResponse{Secrets: []*v1.EscrowedSecret{
			{InstanceId: vmID, SecretId: "default", EscrowedAt: at(0)}, {InstanceId: vmID, SecretId: "next", Incoming: true}}}}, ExitOK},
		"secrets-none":   {[]string{"secrets", "list"}, &fakeNode{secrets: &v1.ListSecretsResponse{}}, ExitOK},
		"secrets-states": {[]string{"secrets", "states"}, &fakeNode{states: &v1.ListStatesResponse{States: refusedStates()}}, ExitOK},
		"states-none":    {[]string{"secrets", "states"}, &fakeNode{states: &v1.ListStatesResponse{}}, ExitOK},
		"accept-state": {[]string{"secrets", "accept-state", vmID, "--digest", strings.Repeat("11", 32)},
			&fakeNode{accepted: &v1.AcceptStateResponse{Generation: 9}}, ExitOK},
		"receipt-list": {[]string{"receipt", "list"}, &fakeNode{receipts: []*v1.ReceiptSummary{
			{Number: 1, ReceiptId: fill(0x77, 32), InstanceId: vmID, MigrationId: "req-1", SourceHost: "compute1", DestinationHost: "compute2",
				Outcome: "committed", At: at(0), Mode: intel, BothSigned: true},
			{Number: 2, ReceiptId: fill(0x78, 32), InstanceId: vmID, SourceHost: "compute2", DestinationHost: "compute1", Outcome: "aborted",
				At: at(0), Mode: sim},
		}}, ExitOK},
		"receipt-none": {[]string{"receipt", "list"}, &fakeNode{}, ExitOK},
		"receipt-show": {[]string{"receipt", "show", strings.Repeat("77", 32)}, &fakeNode{receipt: readGoldenReceipt(t)}, ExitOK},
	} {
		t.Run(name, func(t *testing.T) {
			f := startNode(t, c.node)
			for ext, output := range map[string]string{"txt": "table", "json": "json", "yaml": "yaml"} {
				r := run(t, append([]string{"--socket", f.socket, "-o", output}, c.args...)...).exits(t, c.code)
				if r.err != "" {
					t.Errorf("on standard error: %s", r.err)
				}
				golden(t, name+"."+ext, r.out)
				if strings.ContainsAny(r.out, "\x1b\r\u202e") {
					t.Errorf("%s: a peer's control characters reach the terminal: %q", output, r.out)
				}
			}
		})
	}
}

func TestAcceptStateAsksForTheDigestOfWhatWasRefused(t *testing.T) {
	f := startNode(t, &fakeNode{states: &v1.ListStatesResponse{States: refusedStates()[1:]}, accepted: &v1.AcceptStateResponse{Generation: 9}})
	digest := strings.Repeat("11", 32)
	got := run(t, "--socket", f.socket, "secrets", "accept-state", vmID).exits(t, ExitUsage)
	if !strings.Contains(got.err, "accept-state "+vmID+" --digest "+digest) || !strings.Contains(got.err, "STATE_ROLLED_BACK, generation 5") {
		t.Errorf("%s", got.err)
	}
	if len(f.seen) != 1 {
		t.Errorf("%v was asked", f.seen)
	}
	run(t, "--socket", f.socket, "secrets", "accept-state", vmID, "--digest", digest[2:]).exits(t, ExitUsage)
	run(t, "--socket", f.socket, "secrets", "accept-state", vmID, "--digest", digest).exits(t, ExitOK)
	if q := request[*v1.AcceptStateRequest](t, f); q.GetInstanceId() != vmID || !bytes.Equal(q.GetDigest(), fill(0x11, 32)) {
		t.Errorf("%v", q)
	}
	f = startNode(t, &fakeNode{states: &v1.ListStatesResponse{States: refusedStates()[:1]}})
	got = run(t, "--socket", f.socket, "secrets", "accept-state", vmID).exits(t, ExitUsage)
	if !strings.Contains(got.err, "no state of "+vmID+" was refused") {
		t.Errorf("%s", got.err)
	}
}

func TestARefusedCallPrintsReasonItemFoundExpectedAndRemedy(t *testing.T) {
	r := refusal.New(v1.Reason_REASON_POLICY_ROLLED_BACK, "the policy is older").On("policy_svn").Want("6", "at least 7").Do("sign it again")
	f := startNode(t, &fakeNode{fail: r})
	got := run(t, "--socket", f.socket, "reload").exits(t, ExitRefused)
	golden(t, "refused-call.txt", got.err)
	got = run(t, "--socket", f.socket, "-o", "json", "reload").exits(t, ExitRefused)
	doc := decode[struct {
		Error problem `json:"error"`
	}](t, got.out)
	want := problem{1, "POLICY_ROLLED_BACK", "the policy is older", "policy_svn", "6", "at least 7", "sign it again"}
	if doc.Error != want {
		t.Errorf("got %+v, want %+v", doc.Error, want)
	}
}

func TestAFailedCallEndsWithTheCodeOfItsKindAndSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		fail error
		code int
		says string
	}{
		"the service knows no such call":        {status.Error(codes.Unimplemented, "unknown method"), ExitInternal, "same release"},
		"the service goes away":                 {status.Error(codes.Unavailable, "closing"), ExitUnreachable, "still runs"},
		"the service is too slow":               {status.Error(codes.DeadlineExceeded, "late"), ExitUnreachable, "--timeout"},
		"the service fails without a reason":    {status.Error(codes.Unknown, "what"), ExitInternal, "log"},
		"the caller may not":                    {refusal.New(v1.Reason_REASON_CALLER_NOT_ALLOWED, "uid 1000"), ExitRefused, "local.callers"},
		"the service has an internal error":     {errors.New("disk"), ExitInternal, "log"},
		"the request is malformed":              {refusal.New(v1.Reason_REASON_INVALID_REQUEST, "bad"), ExitUsage, "field"},
		"the node drains, which is a refusal":   {refusal.New(v1.Reason_REASON_DRAINING, "draining"), ExitRefused, "another host"},
		"the peer of the node is not reachable": {refusal.New(v1.Reason_REASON_PEER_UNAVAILABLE, "no"), ExitUnreachable, "peer"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startNode(t, &fakeNode{fail: c.fail})
			for _, args := range [][]string{{"status"}, {"migrations", "list"}, {"secrets", "list"}, {"receipt", "list"}, {"attest"},
				{"preflight", "x"},
				{"drain"}, {"migrations", "watch"}, {"receipt", "export", strings.Repeat("ab", 32), "--out", filepath.Join(dir, "r.json")}} {
				r := run(t, append([]string{"--socket", f.socket}, args...)...)
				if r.code != c.code || !strings.Contains(r.err, c.says) || !strings.Contains(r.err, "\ndo:") || r.out != "" {
					t.Errorf("%v: exit code %d, want %d and %q in:\n%s%s", args, r.code, c.code, c.says, r.out, r.err)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "r.json")); err == nil {
				t.Error("a failed export left a file")
			}
		})
	}
}

func TestWithoutANodeServiceTheSocketIsNamed(t *testing.T) {
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent.sock")
	r := run(t, "--socket", absent, "status").exits(t, ExitUnreachable)
	if !strings.Contains(r.err, absent) || !strings.Contains(r.err, "SAFECONDUCT_SOCKET") {
		t.Errorf("got %s", r.err)
	}
	f := startNode(t, &fakeNode{status: statusAs(v1.Mode_MODE_INTEL, nil)})
	for _, spelling := range []string{"unix:" + f.socket, "unix://" + f.socket} {
		run(t, "--socket", spelling, "status").exits(t, ExitOK)
	}
	run(t, "--socket", "", "status").exits(t, ExitUsage)
}

func TestAStaleSocketIsToldFromOneThatIsMissing(t *testing.T) {
	f := startNode(t, &fakeNode{})
	// A file where the socket should be refuses connections as a socket does whose service has died.
	stale := filepath.Join(filepath.Dir(f.socket), "stale.sock")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(t, "--socket", stale, "status").exits(t, ExitUnreachable)
	if !strings.Contains(r.err, "start safeconductd") {
		t.Errorf("got %s", r.err)
	}
}

func TestTheEvidenceThatIsJudgedIsFreshAndOfThisNonce(t *testing.T) {
	f := startNode(t, &fakeNode{evidence: &v1.GetEvidenceResponse{Quote: []byte("q"), Host: "compute1"},
		appraise: &v1.AppraiseResponse{Accepted: true, Attested: attestedAs(v1.Mode_MODE_INTEL, "compute1")}})
	saved := filepath.Join(t.TempDir(), "quote.bin")
	run(t, "--socket", f.socket, "attest", "--save-quote", saved).exits(t, ExitOK)
	asked, judged := request[*v1.GetEvidenceRequest](t, f), request[*v1.AppraiseRequest](t, f)
	if len(asked.GetNonce()) != nonceSize || string(asked.GetNonce()) != string(judged.GetNonce()) || judged.GetHost() != "compute1" ||
		string(judged.GetQuote()) != "q" {
		t.Errorf("asked %v, judged %v", asked, judged)
	}
	if raw, err := os.ReadFile(saved); err != nil || string(raw) != "q" {
		t.Errorf("saved %q, %v", raw, err)
	}
	run(t, "--socket", f.socket, "attest", "--save-quote", saved).exits(t, ExitUsage) // nothing is overwritten
}

func TestEvidenceOfAnotherNodeIsJudgedByThisOne(t *testing.T) {
	peer := startNode(t, &fakeNode{evidence: &v1.GetEvidenceResponse{Quote: []byte("theirs"), Host: "compute2"}})
	f := startNode(t, &fakeNode{appraise: &v1.AppraiseResponse{Accepted: true, Attested: attestedAs(v1.Mode_MODE_INTEL, "compute2")}})
	r := run(t, "--socket", f.socket, "attest", "--peer", "unix:"+peer.socket, "--host", "compute2", "-o", "json").exits(t, ExitOK)
	if q := request[*v1.AppraiseRequest](t, f); string(q.GetQuote()) != "theirs" || q.GetHost() != "compute2" {
		t.Errorf("judged %v", q)
	}
	if v := decode[attestReport](t, r.out); v.From != "unix:"+peer.socket || !v.Accepted {
		t.Errorf("got %+v", v)
	}
	r = run(t, "--socket", f.socket, "attest", "--peer", "unix:"+peer.socket+".absent").exits(t, ExitUnreachable)
	if !strings.Contains(r.err, "peer port") {
		t.Errorf("got %s", r.err)
	}
}

// A node that says accepted and refuses in one breath is refused.
func TestAnAcceptanceWithRefusalsIsNone(t *testing.T) {
	f := startNode(t, &fakeNode{evidence: &v1.GetEvidenceResponse{Quote: []byte("q"), Host: "compute1"},
		appraise: &v1.AppraiseResponse{Accepted: true, Attested: attestedAs(v1.Mode_MODE_INTEL, "compute1"),
			Refusals: []*v1.Refusal{tcbRefusal()}}})
	run(t, "--socket", f.socket, "attest").exits(t, ExitRefused)
	f.appraise = &v1.AppraiseResponse{Accepted: true}
	run(t, "--socket", f.socket, "attest").exits(t, ExitNotAuthentic)
	f.evidence = &v1.GetEvidenceResponse{Quote: make([]byte, 1<<20)}
	run(t, "--socket", f.socket, "attest").exits(t, ExitNotAuthentic)
}

func TestADrainThatIsNotFollowedToItsEndIsNoSuccess(t *testing.T) {
	f := startNode(t, &fakeNode{drain: []*v1.DrainResponse{{OpenSessions: 1}}})
	r := run(t, "--socket", f.socket, "drain").exits(t, ExitUnreachable)
	if !strings.Contains(r.err, "drains on") {
		t.Errorf("got %s", r.err)
	}
	run(t, "--socket", f.socket, "drain", "--deadline", "2h").exits(t, ExitUsage)
	run(t, "--socket", f.socket, "drain", "--deadline", "-1s").exits(t, ExitUsage)
}

func TestAWatchEndsWellWhenItIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := startNode(t, &fakeNode{hold: true})
	done := make(chan result, 1)
	go func() { done <- runIn(ctx, t, "--socket", f.socket, "migrations", "watch") }()
	cancel()
	(<-done).exits(t, ExitOK)
}

func TestASessionIsNamedByTheBeginningThatOnlyItHas(t *testing.T) {
	f := startNode(t, &fakeNode{sessions: []*v1.Session{
		{SessionId: append(fill(0x11, 15), 1)}, {SessionId: append(fill(0x11, 15), 2)}, {SessionId: fill(0x33, 16),
			State: v1.SessionState_SESSION_STATE_COMMITTED},
	}})
	for arg, code := range map[string]int{
		"3333": ExitOK, "33333": ExitOK, strings.Repeat("33", 16): ExitOK, "1111": ExitUsage, strings.Repeat("11", 15) + "01": ExitOK,
		"4444": ExitUsage, "333": ExitUsage, "zzzz": ExitUsage, strings.Repeat("33", 17): ExitUsage, strings.Repeat("44", 16): ExitRefused,
		"": ExitUsage,
	} {
		if r := run(t, "--socket", f.socket, "migrations", "show", arg); r.code != code {
			t.Errorf("%q: exit code %d, want %d\n%s", arg, r.code, code, r.err)
		}
	}
	run(t, "--socket", f.socket, "migrations", "abort", "3333", "--reason", "maintenance").exits(t, ExitOK)
	if q := request[*v1.AbortRequest](t, f); q.GetReason() != "maintenance" || string(q.GetSessionId()) != string(fill(0x33, 16)) {
		t.Errorf("got %v", q)
	}
}

func TestReceiptsAreListedToTheLastPageAndNotBeyondTheLimit(t *testing.T) {
	f := &fakeNode{}
	for n := range uint64(2*receiptPage + 5) {
		f.receipts = append(f.receipts, &v1.ReceiptSummary{Number: n + 1, ReceiptId: fill(1, 32)})
	}
	startNode(t, f)
	for _, c := range []struct {
		args []string
		want int
	}{{nil, 2*receiptPage + 5}, {[]string{"--limit", "3"}, 3}, {[]string{"--limit", "1500"}, 1500}, {[]string{"--after", "2000"}, 5}} {
		r := run(t, append([]string{"--socket", f.socket, "-o", "json", "receipt", "list"}, c.args...)...).exits(t, ExitOK)
		if got := len(decode[receiptList](t, r.out).Receipts); got != c.want {
			t.Errorf("%v: %d receipts, want %d", c.args, got, c.want)
		}
	}
}

func TestAReceiptIsExportedAsItIsAndNothingIsOverwritten(t *testing.T) {
	f := startNode(t, &fakeNode{receipt: []byte(`{"receipt": true}`)})
	id := strings.Repeat("ab", 32)
	if r := run(t, "--socket", f.socket, "receipt", "export", id).exits(t, ExitOK); r.out != `{"receipt": true}` {
		t.Errorf("got %q", r.out)
	}
	path := filepath.Join(t.TempDir(), "r.json")
	run(t, "--socket", f.socket, "receipt", "export", id, "--out", path).exits(t, ExitOK)
	run(t, "--socket", f.socket, "receipt", "export", id, "--out", path).exits(t, ExitUsage)
	run(t, "--socket", f.socket, "receipt", "export", "abcd").exits(t, ExitUsage)
	if raw, err := os.ReadFile(path); err != nil || string(raw) != `{"receipt": true}` {
		t.Errorf("got %q, %v", raw, err)
	}
}
