package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/services/node/session"
	"github.com/safeconduct/safeconduct/tee"
)

// State that is saved without an armed session (`virsh save`, a snapshot, a dump) never leaves in clear. It is refused, or, where the policy says
// local_save: seal, sealed to this node: sealed.Seal under kind local-save and the name INSTANCE-BLOB, with the id of the save before the plaintext, so
// that the permanent blob of one save and the volatile blob of another do not make a TPM. The host can put back an old save as a whole; that is
// what a snapshot is.
const (
	localSaveKind = "local-save"
	saveIDSize    = 16
)

// localSave tells the blobs of one save or restore from those of another: the permanent blob comes first, and begins one.
type localSave struct {
	saving, restoring [saveIDSize]byte
	open              bool // restoring is set
}

func (n *node) localSave() v1.LocalSave {
	if n.judge().policy.SealsLocalSaves() {
		return v1.LocalSave_LOCAL_SAVE_SEAL
	}
	return v1.LocalSave_LOCAL_SAVE_REFUSE
}

func localSaveID(instance string, kind v1.StateType) sealed.ID {
	return sealed.ID{Kind: localSaveKind, Name: instance + "-" + session.BlobName(kind)}
}

// isLocalSave recognises a sealed blob: state that crosses in a session begins otherwise.
func isLocalSave(blob []byte) bool { return bytes.HasPrefix(blob, []byte(sealed.Magic)) }

// crossLocally seals or opens one blob on the helper's behalf.
func (c *cryptoServer) crossLocally(ctx context.Context, a *attachment, role v1.Role, header *v1.StateHeader, in []byte) ([]byte, error) {
	a.turn.Lock()
	defer a.turn.Unlock()
	if role == v1.Role_ROLE_SOURCE {
		return c.sealBlob(ctx, a, header, in)
	}
	return c.openBlob(ctx, a, header, in)
}

func (c *cryptoServer) sealBlob(ctx context.Context, a *attachment, header *v1.StateHeader, plaintext []byte) ([]byte, error) {
	kind := header.GetType()
	if kind == v1.StateType_STATE_TYPE_PERMANENT {
		rand.Read(a.save.saving[:]) // never fails: it would end the process
	}
	joined := make([]byte, 0, saveIDSize+len(plaintext))
	joined = append(append(joined, a.save.saving[:]...), plaintext...)
	defer clear(joined)
	out, err := sealed.Seal(ctx, tee.SealKeys{Enclave: c.enclave}, localSaveID(header.GetInstanceId(), kind), 1, joined)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_INTERNAL, "sealing the %s blob to this node: %w", session.BlobName(kind), err)
	}
	return out, nil
}

func (c *cryptoServer) openBlob(ctx context.Context, a *attachment, header *v1.StateHeader, blob []byte) ([]byte, error) {
	kind := header.GetType()
	joined, _, err := sealed.Open(ctx, tee.SealKeys{Enclave: c.enclave}, localSaveID(header.GetInstanceId(), kind), blob)
	if err != nil {
		return nil, refusal.New(v1.Reason_REASON_SEALED_DATA_INVALID, "the saved %s blob does not open for instance %s on this node: %w",
			session.BlobName(kind), header.GetInstanceId(), err).On(header.GetInstanceId())
	}
	if len(joined) <= saveIDSize {
		clear(joined)
		return nil, refusal.New(v1.Reason_REASON_SEALED_DATA_INVALID, "the saved %s blob is empty", session.BlobName(kind))
	}
	id := [saveIDSize]byte(joined)
	switch {
	case kind == v1.StateType_STATE_TYPE_PERMANENT:
		a.save.restoring, a.save.open = id, true
	case !a.save.open || subtle.ConstantTimeCompare(id[:], a.save.restoring[:]) != 1:
		clear(joined)
		return nil, refusal.New(v1.Reason_REASON_SEALED_DATA_INVALID, "the %s blob is of another save than the permanent blob before it", session.BlobName(kind))
	}
	return joined[saveIDSize:], nil
}
