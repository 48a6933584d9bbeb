package dcap

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/safeconduct/safeconduct/attestation/quote"
)

// Bounds of a document: Intel's have 20 levels, 2 modules and 30 advisories at most.
const (
	maxLevels     = 1024
	maxAdvisories = 1024
)

// hexText is bytes in hex of either case: Intel publishes both.
type hexText []byte

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *hexText) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil {
		return fmt.Errorf("found %.80q, expected hex", b)
	}
	*h = raw
	return nil
}

type component struct {
	SVN *uint8 `json:"svn"`
}

// level is a TCB level of TCB info, of a QE identity or of a TDX module: the same shape with another tcb.
type level struct {
	TCB struct {
		SGX    []component `json:"sgxtcbcomponents"`
		TDX    []component `json:"tdxtcbcomponents"`
		PCESVN *uint16     `json:"pcesvn"`
		ISVSVN *uint16     `json:"isvsvn"`
	} `json:"tcb"`
	Date       time.Time `json:"tcbDate"`
	Status     Status    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

// preamble is what TCB info and QE identity have in common.
type preamble struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`
	IssueDate  time.Time `json:"issueDate"`
	NextUpdate time.Time `json:"nextUpdate"`
	Number     *uint32   `json:"tcbEvaluationDataNumber"`
	Levels     []level   `json:"tcbLevels"`
}

func (p *preamble) check(version int, ids ...string) error {
	known := false
	for _, id := range ids {
		known = known || p.ID == id
	}
	switch {
	case !known || p.Version != version:
		return fmt.Errorf("found %.20q version %d, expected %s version %d", p.ID, p.Version, strings.Join(ids, " or "), version)
	case p.IssueDate.IsZero() || p.NextUpdate.IsZero() || p.Number == nil:
		return fmt.Errorf("found no issueDate, nextUpdate or tcbEvaluationDataNumber, expected all three")
	}
	return checkLevels(p.Levels)
}

func checkLevels(levels []level) error {
	if len(levels) == 0 || len(levels) > maxLevels {
		return fmt.Errorf("found %d TCB levels, expected 1 to %d", len(levels), maxLevels)
	}
	for i, l := range levels {
		if !l.Status.known() || l.Date.IsZero() || len(l.Advisories) > maxAdvisories {
			return fmt.Errorf("found status %.40q of %v in TCB level %d, expected one of Intel's with its date", l.Status, l.Date, i+1)
		}
	}
	return nil
}

// tcbInfo is TCB info, version 3 (PCS API version 4).
type tcbInfo struct {
	preamble
	FMSPC   hexText      `json:"fmspc"`
	PCEID   hexText      `json:"pceId"`
	TCBType *int         `json:"tcbType"`
	Module  *tdxModule   `json:"tdxModule"`
	Modules []*tdxModule `json:"tdxModuleIdentities"`
}

// tdxModule is tdxModule, which has no id and no levels, or one of tdxModuleIdentities.
type tdxModule struct {
	ID             string  `json:"id"`
	MRSigner       hexText `json:"mrsigner"`
	Attributes     hexText `json:"attributes"`
	AttributesMask hexText `json:"attributesMask"`
	Levels         []level `json:"tcbLevels"`
}

const (
	idSGX = "SGX"
	idTDX = "TDX"
)

// parseTCBInfo reads the body of TCB info. The caller has verified its signature.
func parseTCBInfo(body []byte) (*tcbInfo, error) {
	t := new(tcbInfo)
	if err := json.Unmarshal(body, t); err != nil {
		return nil, err
	}
	if err := t.check(3, idSGX, idTDX); err != nil {
		return nil, err
	}
	if len(t.FMSPC) != 6 || len(t.PCEID) != 2 || t.TCBType == nil || *t.TCBType != 0 {
		return nil, fmt.Errorf("found fmspc of %d bytes, pceId of %d, expected 6, 2 and tcbType 0", len(t.FMSPC), len(t.PCEID))
	}
	for i, l := range t.Levels {
		if !whole(l.TCB.SGX) || l.TCB.PCESVN == nil || (t.ID == idTDX && !whole(l.TCB.TDX)) {
			return nil, fmt.Errorf("found TCB level %d without some SVN, expected %d components and a PCESVN", i+1, tcbComponents)
		}
	}
	return t, t.checkModules()
}

func whole(c []component) bool {
	for _, v := range c {
		if v.SVN == nil {
			return false
		}
	}
	return len(c) == tcbComponents
}

func (t *tcbInfo) checkModules() error {
	if t.ID != idTDX {
		return nil
	}
	if t.Module == nil || len(t.Modules) > maxLevels {
		return fmt.Errorf("found no tdxModule or %d tdxModuleIdentities, expected one and %d at most", len(t.Modules), maxLevels)
	}
	for _, m := range append([]*tdxModule{t.Module}, t.Modules...) {
		if m == nil || len(m.MRSigner) != 48 || len(m.Attributes) != 8 || len(m.AttributesMask) != 8 {
			return fmt.Errorf("found a TDX module without mrsigner, attributes or mask, expected 48, 8 and 8 bytes")
		}
	}
	for _, m := range t.Modules {
		if err := checkEnclaveLevels(m.Levels); err != nil {
			return fmt.Errorf("%.20q: %w", m.ID, err)
		}
	}
	return nil
}

// match finds the platform's level: the first that it reaches in every component (SGX PCK certificate against sgxtcbcomponents, for TDX the
// report's TEE_TCB_SVN against tdxtcbcomponents too) and in PCESVN. nil means that there is none.
func (t *tcbInfo) match(pck *PCK, td *quote.TDXReport) *level {
	for i := range t.Levels {
		l := &t.Levels[i]
		if reaches(pck.ComponentSVNs, l.TCB.SGX, 0) && pck.PCESVN >= *l.TCB.PCESVN && (td == nil || reaches(td.TEETCBSVN, l.TCB.TDX, tdxFirst(td))) {
			return l
		}
	}
	return nil
}

func reaches(have [tcbComponents]uint8, want []component, first int) bool {
	for i := first; i < tcbComponents; i++ {
		if have[i] < *want[i].SVN {
			return false
		}
	}
	return true
}

// tdxFirst is where the comparison of TEE_TCB_SVN begins. Since TDX modules have a major version, bytes 0 and 1 are the module's SVN and
// version, and are judged by the module's identity (Intel TDX DCAP Quoting Library API, appendix A.3.2; PCS API, TDX TCB info).
func tdxFirst(td *quote.TDXReport) int {
	if td.TEETCBSVN[1] > 0 {
		return 2
	}
	return 0
}
