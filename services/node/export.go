package node

import (
	"context"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// maxExportContext bounds what tells exported keys of one purpose apart, in bytes.
const maxExportContext = 64

// DeriveKey implements CryptoService. A key leaves the enclave only for a purpose that the policy in force names, and only while the session is live
// and its peer still stands.
func (c *cryptoServer) DeriveKey(ctx context.Context, req *v1.DeriveKeyRequest) (*v1.DeriveKeyResponse, error) {
	if err := checkInstance(req.GetInstanceId()); err != nil {
		return nil, err
	}
	if len(req.GetContext()) > maxExportContext {
		return nil, invalid("context", "context has %d bytes, more than %d", len(req.GetContext()), maxExportContext)
	}
	if j := c.judge(); !j.policy.Exports(req.GetPurpose()) {
		return nil, refusal.New(v1.Reason_REASON_POLICY_REFUSED, "policy %d lets no key for %.64q leave the enclave", j.policy.SVN, req.GetPurpose()).
			On("exported_keys").Do("add the purpose to exported_keys in the policy")
	}
	s, err := c.table.Live(req.GetInstanceId())
	if err != nil {
		return nil, err
	}
	hs, err := c.standing(ctx, s)
	if err != nil {
		return nil, err
	}
	key, err := hs.ExportKey(req.GetPurpose(), req.GetContext())
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	c.log.Info("key exported", "session", s.Record().ID.String(), "purpose", req.GetPurpose())
	return &v1.DeriveKeyResponse{Key: append([]byte(nil), key.Bytes()...), SessionId: hs.ID[:]}, nil
}
