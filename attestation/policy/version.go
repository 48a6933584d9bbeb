package policy

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
)

// Marks is sealed storage; crypto/sealed.Store is one. Get answers sealed.ErrNotFound for what is not there.
type Marks interface {
	Get(ctx context.Context, kind, name string) ([]byte, error)
	Put(ctx context.Context, kind, name string, plaintext []byte) error
}

// Kind and name under which the newest accepted version is sealed.
const (
	MarkKind = "policy"
	markName = "newest"
)

// mark is what is sealed of the newest policy that was accepted.
type mark struct {
	SVN    uint64 `json:"policy_svn"`
	Digest string `json:"sha256"`
}

// Advance accepts a policy as the one in force: it refuses one that is older than a policy accepted before on this node, or another one of the same
// version (REASON_POLICY_ROLLED_BACK), and records a newer one durably before it returns. A host that removes the sealed record brings an old
// policy back to a service that it starts anew, for the hardware has no memory for us to note it in; a peer still sees the policy's digest.
func Advance(ctx context.Context, marks Marks, p *Loaded) error {
	var newest mark
	raw, err := marks.Get(ctx, MarkKind, markName)
	switch {
	case errors.Is(err, sealed.ErrNotFound):
	case err != nil:
		return fmt.Errorf("the record of the newest policy: %w", err)
	default:
		if err := json.Unmarshal(raw, &newest); err != nil {
			return fmt.Errorf("the record of the newest policy: %w", err)
		}
	}
	now := mark{SVN: p.SVN, Digest: hex.EncodeToString(p.Digest[:])}
	switch {
	case now.SVN < newest.SVN:
		return refusal.New(v1.Reason_REASON_POLICY_ROLLED_BACK, "the policy is older than one that this node has accepted").
			On("policy_svn").Want(fmt.Sprint(now.SVN), fmt.Sprintf("at least %d", newest.SVN))
	case now.SVN == newest.SVN && now.Digest != newest.Digest:
		return refusal.New(v1.Reason_REASON_POLICY_ROLLED_BACK, "another policy of version %d was accepted before on this node", now.SVN).
			On("policy_svn").Want(now.Digest, newest.Digest).Do("give every new content a higher policy_svn")
	case now == newest:
		return nil
	}
	if raw, err = json.Marshal(now); err != nil {
		return err
	}
	if err := marks.Put(ctx, MarkKind, markName, raw); err != nil {
		return fmt.Errorf("the record of the newest policy: %w", err)
	}
	return nil
}
