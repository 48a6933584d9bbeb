package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/tpmquote"
	"github.com/safeconduct/safeconduct/services/node/config"
)

// maxClockSkew is how far apart two hosts' clocks may be, the measuring included. Freshness rests on nonces; this catches a host whose
// clock is wrong before its collateral dates mislead it.
const maxClockSkew = 5 * time.Minute

// judge appraises peers by this node's policy and collateral; it implements handshake.EvidenceAppraiser and handshake.LogAppraiser.
type judge struct {
	policy *policy.Loaded
	quotes *quoteVerifier
	now    func() time.Time
}

// readJudge reads the policy as it is now.
func readJudge(ctx context.Context, cfg *config.Config, root RootOfTrust, marks policy.Marks, quotes *quoteVerifier, now func() time.Time) (*judge, error) {
	p, err := openPolicy(cfg, root)
	if err != nil {
		return nil, err
	}
	// Last: what is recorded as the newest policy is one that can be in force.
	if err := policy.Advance(ctx, marks, p); err != nil {
		return nil, err
	}
	return &judge{policy: p, quotes: quotes, now: now}, nil
}

// openPolicy reads the policy and checks that it is signed, whole, and for this mode.
func openPolicy(cfg *config.Config, root RootOfTrust) (*policy.Loaded, error) {
	raw, err := readBounded(cfg.Policy.File, policy.MaxEnvelope)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := policy.Open(raw, root.PolicyKeys)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Policy.File, err)
	}
	if p.Mode != cfg.Mode {
		return nil, fmt.Errorf("%s: the policy is for mode %s, this node runs in mode %s", cfg.Policy.File, p.Mode, cfg.Mode)
	}
	return p, nil
}

// readBounded reads a file that is not larger than it may be.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return raw, err
}

// verdict on evidence. Attested is set as soon as the evidence is authentic, accepted or not.
type verdict struct {
	Claims   *appraisal.Claims
	Attested *v1.Attested
	Refusals []*refusal.Refusal
}

// appraise judges a quote. bound, if not nil, is what it must be bound to; host, if not empty, under whose enrolment it is judged.
func (j *judge) appraise(ctx context.Context, quote []byte, bound *[64]byte, host string) *verdict {
	return j.appraiseFor(ctx, quote, appraisal.Expectation{ReportData: bound, Host: host, Now: j.now()})
}

func (j *judge) appraiseFor(ctx context.Context, quote []byte, want appraisal.Expectation) *verdict {
	claims, attested, err := j.quotes.verify(ctx, quote, want.Now)
	if err != nil {
		return &verdict{Refusals: []*refusal.Refusal{refusal.From(err)}}
	}
	attested.Host = want.Host
	if pl, ok := j.policy.Enrolled(want.Host); ok {
		attested.PlatformId = pl.PlatformID
	}
	return &verdict{Claims: claims, Attested: attested, Refusals: appraisal.Appraise(claims, &j.policy.Policy, want)}
}

// AppraiseEvidence implements handshake.EvidenceAppraiser.
func (j *judge) AppraiseEvidence(ctx context.Context, quote []byte, reportData [64]byte, host string, platform [32]byte) (*handshake.Peer, error) {
	v := j.appraiseFor(ctx, quote, appraisal.Expectation{ReportData: &reportData, Host: host, PlatformID: &platform, Now: j.now()})
	if err := first(v.Refusals); err != nil {
		return nil, err
	}
	return &handshake.Peer{Attested: v.Attested, PPID: v.Claims.PPID}, nil
}

// first is the first objection, with the others counted and named in its message.
func first(all []*refusal.Refusal) error {
	if len(all) == 0 {
		return nil
	}
	r := *all[0]
	if len(all) > 1 {
		var others []string
		for _, o := range all[1:] {
			others = append(others, o.Error())
		}
		r.Message += "; and further: " + strings.Join(others, "; ")
	}
	return &r
}

// AppraiseLog implements handshake.LogAppraiser.
func (j *judge) AppraiseLog(_ context.Context, c *handshake.LogClaim) (*v1.Appraised, error) {
	raw, host := c.Raw, c.Host
	log, err := hostlog.Parse(raw)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_PROTOCOL_VIOLATION, "the log of %s: %w", host, err)
	}
	key, err := j.tpmKey(log, host, c.Platform, c.Peer)
	if err != nil {
		return nil, err
	}
	before, _ := c.Previous.(*tpmquote.Statement)
	v := appraise.Appraise(log, &j.policy.Integrity, appraise.Expectation{
		Host: host, Qualifying: c.Qualifying, AKPublic: key, Previous: before, Fetch: appraise.Fetch(c.Fetch), Now: c.At, MaxAge: maxClockSkew,
	})
	c.Next = v.TPM
	if v.FetchErr != nil { // nothing was found out about the host
		return nil, v.FetchErr
	}
	if err := v.Err(); err != nil {
		return nil, integrityRefusal(host, v, err)
	}
	return v.Summary(host, raw), nil
}

// tpmKey is the attestation key that the host's TPM quote must be made with: the enrolled one, or, in a fleet that does not enrol, the
// one that makes the platform id which the peer was attested under.
func (j *judge) tpmKey(log *v1.IntegrityLog, host string, platform [32]byte, peer *handshake.Peer) ([]byte, error) {
	if pl, ok := j.policy.Enrolled(host); ok {
		return pl.TPMKey, nil
	}
	key := log.GetTpmQuote().GetAkPublic()
	if id := handshake.PlatformID(peer.PPID, key); !bytes.Equal(id[:], platform[:]) {
		return nil, refusal.New(v1.Reason_REASON_PLATFORM_NOT_ENROLLED, "processor and TPM of host %s do not make the platform it claims to be", host).
			On(host).Want(fmt.Sprintf("%x", id), fmt.Sprintf("%x", platform))
	}
	return key, nil
}

// integrityRefusal gives a verdict its reason: the TPM's, if only the TPM is at fault; the first mismatch is its item.
func integrityRefusal(host string, v *appraise.Verdict, err error) error {
	r := refusal.New(v1.Reason_REASON_INTEGRITY_MISMATCH, "the integrity log of host %s is not accepted: %w", host, err)
	tpmOnly := true
	for _, m := range v.Mismatches {
		tpmOnly = tpmOnly && (m.Kind.Reason() == v1.Reason_REASON_TPM_QUOTE_INVALID)
	}
	if len(v.Mismatches) == 0 {
		return r
	}
	if tpmOnly {
		r.Reason = v1.Reason_REASON_TPM_QUOTE_INVALID
	}
	m := v.Mismatches[0]
	return r.On(m.Item).Want(m.Found, m.Expected).Do(m.Remedy)
}

// ownPlatform is this node's platform id: what its own quote and its own TPM make.
func (n *node) ownPlatform(ctx context.Context) ([32]byte, error) {
	quote, err := n.enclave.Quote(ctx, evidenceReportData([]byte("own platform id")))
	if err != nil {
		return [32]byte{}, fmt.Errorf("this enclave cannot make a quote: %w", err)
	}
	claims, _, err := n.judge().quotes.verify(ctx, quote, n.now())
	if err != nil {
		return [32]byte{}, fmt.Errorf("this node cannot verify its own quote: %w", err)
	}
	if n.ownKind, err = dcap.PlatformOf(quote); err != nil {
		return [32]byte{}, fmt.Errorf("this enclave's own quote: %w", err)
	}
	key, err := n.logs.tpmKey(ctx)
	if err != nil {
		return [32]byte{}, err
	}
	return handshake.PlatformID(claims.PPID, key), nil
}

// selfCheck attests this node to itself as a peer would: quote, policy, enrolment, log. A node that fails it would be refused.
func (n *node) selfCheck(ctx context.Context) *standingOfSelf {
	self, err := n.attestSelf(ctx)
	if errors.Is(err, context.Canceled) {
		self.refusal = refusal.From(err)
		return self
	}
	n.metrics.SelfCheck(err)
	if err != nil {
		r := refusal.From(err)
		self.refusal = r
		n.log.Warn("this node would be refused by its own policy", "reason", refusal.Name(r.Reason), "why", r.Message,
			"item", r.Item, "found", r.Found, "expected", r.Expected, "do", r.RemedyText())
	}
	return self
}

// attestSelf returns what is known of this node, and what it would be refused for.
func (n *node) attestSelf(ctx context.Context) (*standingOfSelf, error) {
	self := new(standingOfSelf)
	ctx, cancel := context.WithTimeout(ctx, n.handshakeTimeout)
	defer cancel()
	data := evidenceReportData([]byte("self-check"))
	quote, err := n.enclave.Quote(ctx, data)
	if err != nil {
		return self, refusal.New(v1.Reason_REASON_QUOTE_FAILED, "this enclave could not make its quote: %w", err)
	}
	platform, j := n.base.PlatformID, n.judge()
	known := j.appraise(ctx, quote, &data, n.host)
	self.claims, self.attested = known.Claims, known.Attested
	peer, err := j.AppraiseEvidence(ctx, quote, data, n.host, platform)
	if err == nil {
		var log *handshake.Log
		if log, err = n.logs.Log(ctx, [32]byte(data[:32])); err == nil {
			_, err = j.AppraiseLog(ctx, &handshake.LogClaim{
				Raw: log.Raw, Qualifying: [32]byte(data[:32]), Host: n.host, Platform: platform, Peer: peer, At: n.now(), Fetch: log.Fetch,
			})
		}
	}
	return self, err
}
