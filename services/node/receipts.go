package node

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/receipt"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/node/session"
)

// receiptTimeout bounds the storing of a receipt, which happens after its session has ended.
const receiptTimeout = 10 * time.Second

// signed is a record with the signatures that it has so far.
type signed struct {
	record              []byte
	source, destination []byte
}

// ending is what this node knows by itself of how a session ends.
func (n *node) ending(l *live, rec session.Record, outcome receipt.Outcome) *receipt.View {
	t, verdict := l.Transcript(), l.judged.Load()
	var digest [32]byte
	if verdict.sets.peer != nil {
		digest = verdict.sets.peer.Digest()
	}
	return &receipt.View{
		Role: l.Role, Transcript: t, MigrationID: rec.MigrationID, State: receipt.BlobsOf(rec.Blobs), ImageBytes: rec.ImageBytes,
		Secrets: l.secrets(), Outcome: outcome, PolicySVN: verdict.judge.policy.SVN, Peer: receipt.FindingOf(l.PeerAttested(), digest),
		Times: receipt.Times{Established: l.established, Judged: verdict.at, Armed: rec.Armed, Concluded: n.now()},
	}
}

// sets are the collateral by which the two quotes of a session were judged last: what its receipt is verified with later.
type sets struct{ own, peer *collateral.Collateral }

// setsOf are the sets in force for the quotes of a session.
func (n *node) setsOf(hs *handshake.Session) sets {
	t := hs.Transcript()
	s := sets{own: n.shelf.of(n.collateral, t.EvidenceS), peer: n.shelf.of(n.collateral, t.EvidenceD)}
	if hs.Role == v1.Role_ROLE_DESTINATION {
		s.own, s.peer = s.peer, s.own
	}
	return s
}

// shelf keeps the sets that open sessions were judged by, each once.
type shelf struct {
	mu   sync.Mutex
	sets map[[32]byte]*collateral.Collateral
}

// maxShelf bounds the sets on the shelf; beyond, it begins anew, and sessions keep what they have.
const maxShelf = 64

// of is the set in force for a quote's kind of platform, or nil.
func (s *shelf) of(cache *collateral.Cache[*dcap.CheckedCollateral], evidence []byte) *collateral.Collateral {
	key, err := dcap.PlatformOf(evidence)
	if err != nil {
		return nil
	}
	all := cache.Status()
	i := slices.IndexFunc(all, func(st collateral.Status) bool { return st.Key == key })
	if i < 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.sets[all[i].Meta.Digest]; known != nil {
		return known
	}
	var raw bytes.Buffer
	if err := cache.Export(&raw, key); err != nil {
		return nil
	}
	entries, err := collateral.ReadBundle(&raw)
	if err != nil || len(entries) != 1 {
		return nil
	}
	if s.sets == nil || len(s.sets) >= maxShelf {
		s.sets = map[[32]byte]*collateral.Collateral{}
	}
	set := entries[0].Collateral
	s.sets[set.Digest()] = set
	return set
}

// record makes and signs this side's record of a session's end.
func (n *node) record(l *live, rec session.Record, outcome receipt.Outcome) (*signed, error) {
	record, err := receipt.Compose(n.ending(l, rec, outcome))
	if err != nil {
		return nil, err
	}
	signature, err := l.SignReceipt(record)
	if err != nil {
		return nil, err
	}
	out := &signed{record: record}
	if l.Role == v1.Role_ROLE_SOURCE {
		out.source = signature
	} else {
		out.destination = signature
	}
	return out, nil
}

// countersign checks the source's record against what this node has seen itself, and signs it.
func (n *node) countersign(l *live, rec session.Record, c *v1.ConcludePayload) (*signed, error) {
	outcome := receipt.Outcome{Result: receipt.Aborted}
	if c.GetCommitted() {
		outcome.Result = receipt.Committed
	}
	if !l.CheckReceipt(c.GetReceipt(), c.GetSignature()) {
		return nil, refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the source's record is not signed by its enclave")
	}
	if _, err := receipt.Check(c.GetReceipt(), n.ending(l, rec, outcome)); err != nil {
		return nil, err
	}
	signature, err := l.SignReceipt(c.GetReceipt())
	if err != nil {
		return nil, err
	}
	return &signed{record: c.GetReceipt(), source: c.GetSignature(), destination: signature}, nil
}

// keep stores a receipt. The session has ended and stays as it ended: a receipt that cannot be stored is an error in the log.
func (n *node) keep(l *live, t handshake.Transcript, s *signed) {
	used := l.judged.Load().sets
	source, destination := used.own, used.peer
	if l.Role == v1.Role_ROLE_DESTINATION {
		source, destination = destination, source
	}
	ctx, cancel := context.WithTimeout(context.Background(), receiptTimeout)
	defer cancel()
	link, err := n.receipts.Append(ctx, &receipt.Entry{
		Record: s.record, SourceSignature: s.source, DestinationSignature: s.destination,
		SourceEvidence: t.EvidenceS, DestinationEvidence: t.EvidenceD,
		SourceCollateral: source, DestinationCollateral: destination,
	})
	id := receipt.ID(s.record)
	if err != nil {
		n.metrics.NoReceipt()
		n.log.Error("a receipt could not be stored", "session", session.ID(l.ID).String(), "receipt", session.ID(id[:16]).String(), "why", err,
			"do", "look at the state directory's disk; the peer may have its copy")
		return
	}
	n.metrics.Receipt(s.source != nil && s.destination != nil)
	n.recordReceipt(l, s)
	n.log.Info("receipt stored", "session", session.ID(l.ID).String(), "number", link.Number, "both_signed", s.source != nil && s.destination != nil)
}

// End implements session.Secrets: whatever ended the session, a migration leaves a record. One that was concluded with the peer has it already; of any
// other that was armed this side signs its own, unless it has told the peer of a commit and does not know whether that has arrived: then only the
// peer knows how the migration ended. It is called under the table's lock.
func (l *live) End(rec session.Record) {
	if l.concluded.CompareAndSwap(false, true) && rec.MigrationID != "" && rec.State == session.Aborted && l.commit.Load() == nil {
		reason := refusal.Name(v1.Reason_REASON_UNSPECIFIED)
		if rec.Refusal != nil {
			reason = refusal.Name(rec.Refusal.Reason)
		}
		s, err := l.node.record(l, rec, receipt.Outcome{Result: receipt.Aborted, Reason: reason})
		if err != nil {
			l.node.metrics.NoReceipt()
			l.node.log.Error("a session ended without a record", "session", rec.ID.String(), "why", err)
		} else {
			t := l.Transcript()
			l.node.background.Go(func() { l.node.keep(l, t, s) })
		}
	}
	l.Destroy()
	l.node.discard(l, rec)
}

// receiptServer implements ReceiptService.
type receiptServer struct {
	v1.UnimplementedReceiptServiceServer
	*node
}

// ListReceipts implements ReceiptService.
func (r *receiptServer) ListReceipts(ctx context.Context, req *v1.ListReceiptsRequest) (*v1.ListReceiptsResponse, error) {
	all, err := r.receipts.List(ctx, req.GetInstanceId(), req.GetAfter(), int(req.GetLimit()))
	if err != nil {
		return nil, err
	}
	out := &v1.ListReceiptsResponse{}
	for _, s := range all {
		mode := v1.Mode_MODE_INTEL
		if s.Mode != handshake.ModeName(mode) {
			mode = v1.Mode_MODE_SIMULATED
		}
		out.Receipts = append(out.Receipts, &v1.ReceiptSummary{
			Number: s.Number, ReceiptId: s.ID[:], InstanceId: s.Instance, MigrationId: s.MigrationID, SourceHost: s.Source, DestinationHost: s.Destination,
			Outcome: s.Outcome.Result, At: timestamppb.New(s.At), Mode: mode, BothSigned: s.SignedBy == receipt.SignedByBoth,
		})
	}
	return out, nil
}

// ExportReceipt implements ReceiptService.
func (r *receiptServer) ExportReceipt(_ context.Context, req *v1.ExportReceiptRequest) (*v1.ExportReceiptResponse, error) {
	if len(req.GetReceiptId()) != 32 {
		return nil, invalid("receipt_id", "receipt_id has %d bytes, not 32", len(req.GetReceiptId()))
	}
	raw, err := r.receipts.Get([32]byte(req.GetReceiptId()))
	if err != nil {
		return nil, err
	}
	return &v1.ExportReceiptResponse{Receipt: raw}, nil
}
