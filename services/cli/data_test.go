package cli

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

const vmID = "0c6f1d3e-5b1f-4d62-9b0a-3a4f7f5f0c11"

func noSession() *refusal.Refusal {
	return refusal.New(v1.Reason_REASON_NO_SESSION, "there is no such session").On("session_id")
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func at(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(d)) }

// attestedAs is what an enclave of a mode has proven.
func attestedAs(mode v1.Mode, host string) *v1.Attested {
	root := "CN=Intel SGX Root CA,O=Intel Corporation,L=Santa Clara,ST=CA,C=US"
	if mode != v1.Mode_MODE_INTEL {
		root = "CN=SIMULATED SGX Root CA"
	}
	return &v1.Attested{
		Mode: mode, Mrenclave: fill(0xaa, 32), Mrsigner: fill(0xbb, 32), IsvProdId: 1, IsvSvn: 2, TcbStatus: "UpToDate",
		TcbEvaluationDataNumber: 19,
		TcbDate:                 at(-1000 * time.Hour), Fmspc: "00606a000000", Root: root, ExpiresAt: at(240 * time.Hour), PlatformId: fill(0xcc, 32), Host: host,
	}
}

func appraisedAs(host string) *v1.Appraised {
	return &v1.Appraised{Host: host, Matched: 41, Unjudged: 2, TpmQuoteVerified: true, LogDigest: fill(0xdd, 32), BootEvents: 93,
		SecureBoot: "enabled"}
}

func tcbRefusal() *v1.Refusal {
	return refusal.New(v1.Reason_REASON_TCB_NOT_ACCEPTED, "the platform's TCB status is OutOfDate").On("tcb status").Want("OutOfDate",
		"UpToDate").Proto()
}

// refusedStates are states at rest: recorded, rolled back, never recorded, under a key that waits, and a new one.
func refusedStates() []*v1.RecordedState {
	return []*v1.RecordedState{
		{InstanceId: vmID, Generation: 8, Digest: fill(0x22, 32), RecordedAt: at(0)},
		{InstanceId: vmID, Generation: 8, Digest: fill(0x22, 32), RecordedAt: at(0), RefusedDigest: fill(0x11, 32), RefusedAt: at(time.Hour),
			RefusedReason: v1.Reason_REASON_STATE_ROLLED_BACK, RefusedGeneration: 5},
		{InstanceId: vmID, Generation: 8, Digest: fill(0x22, 32), RecordedAt: at(0), RefusedDigest: fill(0x33, 32), RefusedAt: at(time.Hour),
			RefusedReason: v1.Reason_REASON_STATE_NOT_RECORDED},
		{InstanceId: vmID, Incoming: true},
		{InstanceId: vmID},
	}
}

// hostile is a refusal with texts that a peer chose to fool a terminal.
func hostile() *v1.Refusal {
	return &v1.Refusal{
		Reason: v1.Reason_REASON_INTEGRITY_MISMATCH, Message: "the log of host compute2 is not accepted",
		Item:  "vmm/qemu\x1b[2J\x1b[1;1Hverdict ACCEPTED",
		Found: "\u202egnihton\r\n  ok  everything", Expected: "sha256:00ff", Remedy: "find out why the item differs",
	}
}

func steps(mode v1.Mode, through int, last *v1.Refusal) []*v1.StepReport {
	all := []*v1.StepReport{
		{Step: v1.Step_STEP_PEER_ATTESTATION, Elapsed: durationpb.New(112 * time.Millisecond), Attested: attestedAs(mode, "compute2")},
		{Step: v1.Step_STEP_INTEGRITY_EXCHANGE, Elapsed: durationpb.New(41 * time.Millisecond), Appraised: appraisedAs("compute2")},
		{Step: v1.Step_STEP_KEY_DERIVATION, Elapsed: durationpb.New(300 * time.Microsecond)},
	}[:through]
	if last != nil {
		s := all[through-1]
		s.Refusal, s.Attested, s.Appraised = last, nil, nil
	}
	return all
}

func preflightAs(mode v1.Mode, through int, r *v1.Refusal) *v1.PreflightResponse {
	last := r
	if through == 0 {
		last = nil
	}
	return &v1.PreflightResponse{
		Accepted: r == nil, Mode: mode, Host: "compute1", PeerHost: "compute2", Steps: steps(mode, through, last), Refusal: r,
		Elapsed: durationpb.New(153300 * time.Microsecond),
	}
}

func sessionAs(id byte, state v1.SessionState, r *v1.Refusal) *v1.Session {
	return &v1.Session{
		SessionId: fill(id, 16), InstanceId: vmID, Role: v1.Role_ROLE_SOURCE, SourceHost: "compute1", DestinationHost: "compute2", State: state,
		Mode: v1.Mode_MODE_SIMULATED, MigrationId: "req-1", CreatedAt: at(-time.Minute), AppraisedAt: at(-50 * time.Second),
		ExpiresAt:      at(time.Hour),
		BytesProtected: 15670, PeerAttested: attestedAs(v1.Mode_MODE_SIMULATED, "compute2"), PeerAppraised: appraisedAs("compute2"),
		Steps: steps(v1.Mode_MODE_SIMULATED, 3, nil), Refusal: r,
		Blobs: []*v1.BlobReport{{
			Type: v1.StateType_STATE_TYPE_PERMANENT, PlaintextBytes: 6188, CiphertextBytes: 6300, Elapsed: durationpb.New(900 * time.Microsecond),
		}},
	}
}

func statusAs(mode v1.Mode, r *v1.Refusal) *v1.GetStatusResponse {
	return &v1.GetStatusResponse{
		Mode: mode, Host: "compute1", Version: "v1.2.3", StartedAt: at(-48 * time.Hour), PlatformId: fill(0xcc, 32), PolicySvn: 7,
		PolicyDigest:  fill(0xee, 32),
		PolicySigners: []string{"0a1b"}, Attested: attestedAs(mode, "compute1"), AcceptedByOwnPolicy: r == nil, OwnRefusal: r, OpenSessions: 2,
		CollateralExpiresAt: at(240 * time.Hour),
	}
}
