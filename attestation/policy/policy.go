// Package policy is the operator's word on what is accepted: which enclaves, which TCB, which platforms, which reference values for a
// host's integrity log. One JSON file, strictly read: an unknown or repeated key, or anything after the document, is an error.
//
// The zero policy accepts nobody. Every loosening is a key of its own that says so.
package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/tee"
)

// MaxSize bounds a policy file, in bytes: reference values of a large fleet fit in a tenth of it.
const MaxSize = 8 << 20

// Schema is the value of "schema" in every policy of this version.
const Schema = "safeconduct/policy/v1"

// Policy is what is accepted.
type Policy struct {
	Schema string `json:"schema"`
	// SVN is the policy's own version number; a later policy has a higher one.
	SVN uint64 `json:"policy_svn"`
	// Mode that this policy is for. A policy for simulated platforms never accepts real ones, and the reverse.
	Mode     tee.Mode  `json:"mode"`
	Enclaves []Enclave `json:"enclaves"`
	TCB      TCB       `json:"tcb"`
	// Enrolment is "required" (also when empty) or "none", for a fleet that does not enrol its platforms: any processor that Intel
	// vouches for may then answer under any host's name.
	Enrolment string     `json:"enrolment,omitempty"`
	Platforms []Platform `json:"platforms"`
	// ExportedKeys are the purposes for which a key may leave the enclave: "tunnel" for the whole migration stream. None by default.
	ExportedKeys []string `json:"exported_keys,omitempty"`
	// LocalSave says what becomes of a vTPM's state in `virsh save`, a snapshot or a dump: "refuse" (also when empty), or "seal" it to the node.
	LocalSave string `json:"local_save,omitempty"`
	// Integrity holds the reference values for hosts' logs.
	Integrity appraise.ReferenceValues `json:"integrity"`
}

// Enclave is one rule that accepts enclaves: by MRENCLAVE, or by MRSIGNER with product and minimum version.
type Enclave struct {
	Name      string `json:"name,omitempty"`
	MREnclave Hex    `json:"mrenclave,omitempty"`
	MRSigner  Hex    `json:"mrsigner,omitempty"`
	// ISVProdID must match, with MRSigner.
	ISVProdID uint16 `json:"isv_prod_id,omitempty"`
	MinISVSVN uint16 `json:"min_isv_svn,omitempty"`
	// Debug accepts a debug enclave, whose memory its host can read.
	Debug bool `json:"debug,omitempty"`
	// NotBefore and NotAfter bound the rule in time, so that a fleet can roll from one release to the next.
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
}

// TCB is what is accepted of a platform's patch level.
type TCB struct {
	// Statuses in Intel's words; empty means UpToDate only.
	Statuses []string `json:"statuses,omitempty"`
	// ToleratedAdvisories are accepted beside a status that carries them, such as "INTEL-SA-00615".
	ToleratedAdvisories []string `json:"tolerated_advisories,omitempty"`
	// MinEvaluationDataNumber is the oldest collateral generation that is accepted.
	MinEvaluationDataNumber uint32 `json:"min_evaluation_data_number,omitempty"`
	// MinPCKCRLNumber and MinRootCACRLNumber are the lowest numbers of the two CRLs that are accepted.
	MinPCKCRLNumber    uint64 `json:"min_pck_crl_number,omitempty"`
	MinRootCACRLNumber uint64 `json:"min_root_ca_crl_number,omitempty"`
	// MaxCollateralAge bounds how long ago the oldest of TCB info, QE identity and the two CRLs may have been issued, such as "720h"; empty leaves it
	// to their own dates.
	MaxCollateralAge Duration `json:"max_collateral_age,omitempty"`
}

// Duration is a time.Duration written as "30s" or "720h"; zero is written as nothing.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText accepts what time.ParseDuration does, above zero.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("%.40q is not a duration such as \"720h\"", b)
	}
	*d = Duration(v)
	return nil
}

// Platform is an enrolled node.
type Platform struct {
	Host string `json:"host"`
	// PlatformID is SHA-384 over PPID and TPM key, cut to 32 bytes; handshake.PlatformID.
	PlatformID Hex `json:"platform_id"`
	// TPMKey is the attestation key of the host's TPM, as TPMT_PUBLIC; empty for a host without a TPM.
	TPMKey Hex `json:"tpm_key,omitempty"`
}

// Hex is bytes, written as lower-case hex.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText accepts lower-case hex only: one value has one spelling.
func (h *Hex) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || strings.ToLower(string(b)) != string(b) {
		return fmt.Errorf("%.80q is not lower-case hex", b)
	}
	*h = raw
	return nil
}

// Loaded is a policy with the digest of the exact bytes it was read from.
type Loaded struct {
	Policy
	Raw    []byte
	Digest [32]byte
	// SignedBy are the ids of the trusted keys that signed it; empty for one that was read by Parse.
	SignedBy []string
}

// Parse reads and checks a policy.
func Parse(raw []byte) (*Loaded, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("policy: %d bytes, more than %d", len(raw), MaxSize)
	}
	if err := noRepeatedKeys(json.NewDecoder(bytes.NewReader(raw))); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	l := &Loaded{Raw: bytes.Clone(raw), Digest: sha256.Sum256(raw)}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l.Policy); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return l, nil
}

// noRepeatedKeys walks the whole document: two readers of a file with a key given twice may see two policies.
func noRepeatedKeys(dec *json.Decoder) error {
	if err := walk(dec, "", maxDepth); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}

// maxDepth bounds nesting; a policy nests seven deep.
const maxDepth = 16

func walk(dec *json.Decoder, path string, depth int) error {
	if depth == 0 {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		seen := map[string]bool{}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			// encoding/json matches names without regard to case, so two spellings are a repetition too.
			if folded := strings.ToLower(name); seen[folded] {
				return fmt.Errorf("key %q is given twice", path+name)
			} else {
				seen[folded] = true
			}
			if err := walk(dec, path+name+".", depth-1); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	case json.Delim('['):
		for dec.More() {
			if err := walk(dec, path, depth-1); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	}
	return err
}

// statuses are Intel's, as TCB info v3 spells them. Revoked is none: nothing accepts it.
var statuses = []string{
	"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded",
}

func (p *Policy) check() error {
	if p.Schema != Schema {
		return fmt.Errorf("schema is %q, not %q", p.Schema, Schema)
	}
	if p.SVN == 0 {
		return errors.New("policy_svn is missing: it counts from 1")
	}
	if p.Mode != tee.ModeIntel && p.Mode != tee.ModeSimulated {
		return fmt.Errorf("mode is %q, not %q or %q", p.Mode, tee.ModeIntel, tee.ModeSimulated)
	}
	for i, e := range p.Enclaves {
		if err := e.check(); err != nil {
			return fmt.Errorf("enclaves[%d]: %w", i, err)
		}
	}
	for _, s := range p.TCB.Statuses {
		if !slices.Contains(statuses, s) {
			return fmt.Errorf("tcb.statuses: %q is not one of %v", s, statuses)
		}
	}
	if p.Enrolment != "" && p.Enrolment != "required" && p.Enrolment != "none" {
		return fmt.Errorf("enrolment is %q, not \"required\" or \"none\"", p.Enrolment)
	}
	if p.LocalSave != "" && p.LocalSave != "refuse" && p.LocalSave != "seal" {
		return fmt.Errorf("local_save is %q, not \"refuse\" or \"seal\"", p.LocalSave)
	}
	for i, purpose := range p.ExportedKeys {
		if purpose != ExportTunnel {
			return fmt.Errorf("exported_keys[%d] is %q, not %q: no other key may leave the enclave", i, purpose, ExportTunnel)
		}
	}
	if err := p.Integrity.Validate(); err != nil {
		return fmt.Errorf("integrity: %w", err)
	}
	return p.checkPlatforms()
}

func (e *Enclave) check() error {
	switch {
	case len(e.MREnclave) == 0 && len(e.MRSigner) == 0:
		return errors.New("neither mrenclave nor mrsigner is given")
	case len(e.MREnclave) != 0 && len(e.MREnclave) != 32:
		return fmt.Errorf("mrenclave has %d bytes, not 32", len(e.MREnclave))
	case len(e.MRSigner) != 0 && len(e.MRSigner) != 32:
		return fmt.Errorf("mrsigner has %d bytes, not 32", len(e.MRSigner))
	case !e.NotAfter.IsZero() && !e.NotBefore.Before(e.NotAfter):
		return errors.New("not_after is not after not_before")
	}
	return nil
}

func (p *Policy) checkPlatforms() error {
	hosts, ids := map[string]bool{}, map[string]bool{}
	for i, pl := range p.Platforms {
		switch {
		case pl.Host == "":
			return fmt.Errorf("platforms[%d]: host is missing", i)
		case len(pl.PlatformID) != 32:
			return fmt.Errorf("platforms[%d]: platform_id has %d bytes, not 32", i, len(pl.PlatformID))
		case hosts[pl.Host]:
			return fmt.Errorf("platforms[%d]: host %s is listed twice", i, pl.Host)
		case ids[string(pl.PlatformID)]:
			return fmt.Errorf("platforms[%d]: its platform_id is listed twice", i)
		}
		hosts[pl.Host], ids[string(pl.PlatformID)] = true, true
	}
	return nil
}

// Enrolled returns the platform enrolled for host.
func (p *Policy) Enrolled(host string) (Platform, bool) {
	i := slices.IndexFunc(p.Platforms, func(pl Platform) bool { return pl.Host == host })
	if i < 0 {
		return Platform{}, false
	}
	return p.Platforms[i], true
}

// ExportTunnel is the purpose of keys for safeconduct-tunnel, which carries the whole migration stream.
const ExportTunnel = "tunnel"

// Exports says whether keys for a purpose may leave the enclave.
func (p *Policy) Exports(purpose string) bool { return slices.Contains(p.ExportedKeys, purpose) }

// SealsLocalSaves says whether state that is saved without an armed session is sealed to the node, rather than refused.
func (p *Policy) SealsLocalSaves() bool { return p.LocalSave == "seal" }

// AcceptsStatus says whether a converged TCB status is accepted.
func (p *Policy) AcceptsStatus(status string) bool {
	if len(p.TCB.Statuses) == 0 {
		return status == "UpToDate"
	}
	return slices.Contains(p.TCB.Statuses, status)
}
