package dcap

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/safeconduct/safeconduct/attestation/quote"
)

// qeIdentity is the identity of a quoting enclave, version 2 (PCS API version 4).
type qeIdentity struct {
	preamble
	MiscSelect     hexText `json:"miscselect"`
	MiscSelectMask hexText `json:"miscselectMask"`
	Attributes     hexText `json:"attributes"`
	AttributesMask hexText `json:"attributesMask"`
	MRSigner       hexText `json:"mrsigner"`
	ISVProdID      *uint16 `json:"isvprodid"`
}

const (
	idQE   = "QE"
	idTDQE = "TD_QE"
)

// parseQEIdentity reads the body of a QE identity. The caller has verified its signature.
func parseQEIdentity(body []byte) (*qeIdentity, error) {
	q := new(qeIdentity)
	if err := json.Unmarshal(body, q); err != nil {
		return nil, err
	}
	if err := q.check(2, idQE, idTDQE); err != nil {
		return nil, err
	}
	if len(q.MiscSelect) != 4 || len(q.MiscSelectMask) != 4 || len(q.Attributes) != 16 || len(q.AttributesMask) != 16 ||
		len(q.MRSigner) != 32 || q.ISVProdID == nil {
		return nil, fmt.Errorf("found not all of miscselect, attributes, their masks, mrsigner and isvprodid, expected 4, 16, 4, 16 and 32 bytes and a number")
	}
	return q, checkEnclaveLevels(q.Levels)
}

// checkEnclaveLevels checks levels by ISVSVN.
func checkEnclaveLevels(levels []level) error {
	if err := checkLevels(levels); err != nil {
		return err
	}
	for i, l := range levels {
		if l.TCB.ISVSVN == nil || !l.Status.ofEnclave() {
			return fmt.Errorf("found TCB level %d without isvsvn or with status %.40q, expected UpToDate, OutOfDate or Revoked", i+1, l.Status)
		}
	}
	return nil
}

// describes checks that a report is of this enclave, whatever its version.
func (q *qeIdentity) describes(r *quote.SGXReport) error {
	misc := binary.LittleEndian.AppendUint32(nil, r.MiscSelect)
	for _, f := range []struct {
		name             string
		found, want, and []byte
	}{
		{"MRSIGNER", r.MRSigner[:], q.MRSigner, nil},
		{"MISCSELECT", misc, q.MiscSelect, q.MiscSelectMask},
		{"ATTRIBUTES", r.Attributes[:], q.Attributes, q.AttributesMask},
	} {
		if !equalMasked(f.found, f.want, f.and) {
			return failed(CheckQEReport, ArtefactQuote, fmt.Sprintf("%s %x of the quoting enclave", f.name, f.found), fmt.Sprintf("%x under mask %x", f.want, f.and))
		}
	}
	if r.ISVProdID != *q.ISVProdID {
		return failed(CheckQEReport, ArtefactQuote, fmt.Sprintf("ISVPRODID %d of the quoting enclave", r.ISVProdID), fmt.Sprint(*q.ISVProdID))
	}
	return nil
}

// equalMasked compares found, where mask is set, with want. Without a mask every bit counts.
func equalMasked(found, want, mask []byte) bool {
	if len(found) != len(want) {
		return false
	}
	for i := range found {
		m := byte(0xff)
		if mask != nil {
			m = mask[i]
		}
		if found[i]&m != want[i]&m {
			return false
		}
	}
	return true
}

// enclaveLevel is the first level at or below an SVN.
func enclaveLevel(levels []level, svn uint16) *level {
	for i := range levels {
		if svn >= *levels[i].TCB.ISVSVN {
			return &levels[i]
		}
	}
	return nil
}

// status of a quoting enclave: one that is older than every level is revoked, as in Intel's library.
func (q *qeIdentity) status(r *quote.SGXReport) part {
	if l := enclaveLevel(q.Levels, r.ISVSVN); l != nil {
		return part{l.Status, l.Date, l.Advisories}
	}
	return part{Status: Revoked}
}

// moduleStatus judges the TDX module of a report: by tdxModule alone if the module has no major version, and else by the identity of that
// version, whose levels count the module's SVN.
func (t *tcbInfo) moduleStatus(td *quote.TDXReport) (part, error) {
	version := td.TEETCBSVN[1]
	module := t.Module
	if version > 0 {
		module = nil
		want := fmt.Sprintf("TDX_%02X", version)
		for _, m := range t.Modules {
			if strings.EqualFold(m.ID, want) {
				module = m
			}
		}
		if module == nil {
			return part{}, failed(CheckTDXModule, ArtefactTCBInfo, "no identity of "+want, "one")
		}
	}
	if !equalMasked(td.MRSignerSeam[:], module.MRSigner, nil) || !equalMasked(td.SeamAttributes[:], module.Attributes, module.AttributesMask) {
		return part{}, failed(CheckTDXModule, ArtefactQuote, fmt.Sprintf("MRSIGNERSEAM %x, attributes %x", td.MRSignerSeam, td.SeamAttributes),
			fmt.Sprintf("%x, %x under mask %x", []byte(module.MRSigner), []byte(module.Attributes), []byte(module.AttributesMask)))
	}
	if version == 0 {
		return part{}, nil
	}
	if l := enclaveLevel(module.Levels, uint16(td.TEETCBSVN[0])); l != nil {
		return part{l.Status, l.Date, l.Advisories}, nil
	}
	return part{Status: Unsupported}, nil
}
