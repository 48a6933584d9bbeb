package dcap

import (
	"encoding/hex"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/tee/simulated"
)

func TestASimulatedQuoteVerifiesUnderItsOwnRootInBothVersions(t *testing.T) {
	for _, ca := range []simulated.CA{simulated.PlatformCA, simulated.ProcessorCA} {
		r := newRig(t, simulated.PlatformOptions{PPID: [16]byte{0xab}, CA: ca})
		c := r.issue(t, simulated.CollateralOptions{CA: ca, EvaluationDataNumber: 19, CRLNumber: 42})
		for _, version := range []int{3, 4} {
			got, err := r.verifier.Verify(r.quote(t, version), c, now)
			if err != nil {
				t.Fatalf("version %d: %v", version, err)
			}
			if got.Status != UpToDate || got.PlatformStatus != UpToDate || got.QEStatus != UpToDate || got.ModuleStatus != "" || len(got.AdvisoryIDs) > 0 {
				t.Errorf("version %d: got %+v", version, got)
			}
			if int(got.Quote.Version) != version || got.MREnclave != measurement.MREnclave || got.MRSigner != measurement.MRSigner ||
				got.ISVProdID != 7 || got.ISVSVN != 9 || got.Debug || got.ReportData != reportData {
				t.Errorf("version %d: got %+v", version, got)
			}
			fmspc := simulated.DefaultFMSPC()
			if got.PPID != [16]byte{0xab} || got.FMSPC != hex.EncodeToString(fmspc[:]) || got.PCEID != "0000" || got.PCKSerial != serialText(r.platform(t).PCKSerial()) ||
				got.PCKCRLNumber != 42 || got.RootCACRLNumber != 42 || got.EvaluationDataNumber() != 19 || got.RootPin != r.verifier.Root {
				t.Errorf("version %d: got %+v", version, got)
			}
			if !got.NotBefore.Equal(issued) || !got.ExpiresAt.Equal(issued.Add(simulated.DefaultValidity)) {
				t.Errorf("version %d: valid from %v to %v", version, got.NotBefore, got.ExpiresAt)
			}
		}
	}
}

func TestADebugEnclaveIsReportedAsOne(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	m := measurement
	m.Debug = true
	p, err := simulated.Open(r.platformDir, m)
	if err != nil {
		t.Fatal(err)
	}
	q, err := p.Quote(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.verifier.Verify(q, r.issue(t, simulated.CollateralOptions{}), now); err != nil || !got.Debug {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestEachStatusOfTCBInfoAndItsConvergence(t *testing.T) {
	date := time.Date(2024, 3, 13, 0, 0, 0, 0, time.UTC)
	levels := func(status string, advisories ...string) []simulated.TCBLevel {
		return []simulated.TCBLevel{{Date: date, Status: status, Advisories: advisories}}
	}
	qe := func(status string, advisories ...string) []simulated.QELevel {
		return []simulated.QELevel{{Date: date, Status: status, Advisories: advisories}}
	}
	high := levels("UpToDate")
	high[0].PCESVN = 65535
	for name, tc := range map[string]struct {
		levels     []simulated.TCBLevel
		qe         []simulated.QELevel
		platform   Status
		qeStatus   Status
		converged  Status
		advisories []string
	}{
		"up to date":                             {levels("UpToDate"), nil, UpToDate, UpToDate, UpToDate, nil},
		"software hardening":                     {levels("SWHardeningNeeded", "A"), nil, SWHardeningNeeded, UpToDate, SWHardeningNeeded, []string{"A"}},
		"configuration":                          {levels("ConfigurationNeeded", "A", "B"), nil, ConfigurationNeeded, UpToDate, ConfigurationNeeded, []string{"A", "B"}},
		"configuration and hardening":            {levels("ConfigurationAndSWHardeningNeeded"), nil, ConfigurationAndSWHardeningNeeded, UpToDate, ConfigurationAndSWHardeningNeeded, nil},
		"out of date":                            {levels("OutOfDate"), nil, OutOfDate, UpToDate, OutOfDate, nil},
		"out of date and configuration":          {levels("OutOfDateConfigurationNeeded"), nil, OutOfDateConfigurationNeeded, UpToDate, OutOfDateConfigurationNeeded, nil},
		"revoked":                                {levels("Revoked"), nil, Revoked, UpToDate, Revoked, nil},
		"no level":                               {high, nil, Unsupported, UpToDate, Unsupported, nil},
		"an old QE":                              {levels("UpToDate"), qe("OutOfDate"), UpToDate, OutOfDate, OutOfDate, nil},
		"an old QE, hardening":                   {levels("SWHardeningNeeded"), qe("OutOfDate"), SWHardeningNeeded, OutOfDate, OutOfDate, nil},
		"an old QE, configuration":               {levels("ConfigurationNeeded"), qe("OutOfDate"), ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded, nil},
		"an old QE, configuration and hardening": {levels("ConfigurationAndSWHardeningNeeded"), qe("OutOfDate"), ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded, nil},
		"an old QE, out of date":                 {levels("OutOfDate"), qe("OutOfDate"), OutOfDate, OutOfDate, OutOfDate, nil},
		"an old QE, out of date, configuration":  {levels("OutOfDateConfigurationNeeded"), qe("OutOfDate"), OutOfDateConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded, nil},
		"an old QE, revoked":                     {levels("Revoked"), qe("OutOfDate"), Revoked, OutOfDate, Revoked, nil},
		"a revoked QE":                           {levels("UpToDate"), qe("Revoked"), UpToDate, Revoked, Revoked, nil},
		"a revoked QE, no level":                 {high, qe("Revoked"), Unsupported, Revoked, Revoked, nil},
		"an old QE, no level":                    {high, qe("OutOfDate"), Unsupported, OutOfDate, Unsupported, nil},
		"a QE below every level": {
			levels("UpToDate"), []simulated.QELevel{{ISVSVN: 99, Date: date, Status: "UpToDate"}}, UpToDate, Revoked, Revoked, nil},
		"advisories of both, each once": {levels("OutOfDate", "A", "B"), qe("OutOfDate", "B", "C"), OutOfDate, OutOfDate, OutOfDate, []string{"A", "B", "C"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, simulated.PlatformOptions{})
			got, err := r.verifier.Verify(r.quote(t, 3), r.issue(t, simulated.CollateralOptions{Levels: tc.levels, QELevels: tc.qe}), now)
			if err != nil {
				t.Fatal(err)
			}
			if got.PlatformStatus != tc.platform || got.QEStatus != tc.qeStatus || got.Status != tc.converged || !slices.Equal(got.AdvisoryIDs, tc.advisories) {
				t.Errorf("got %s, %s, %s, %v", got.PlatformStatus, got.QEStatus, got.Status, got.AdvisoryIDs)
			}
			if tc.platform == Unsupported != got.TCBDate.IsZero() {
				t.Errorf("TCB date %v", got.TCBDate)
			}
		})
	}
}

func TestALevelIsReachedOnlyByEveryComponentAndThePCE(t *testing.T) {
	full := [16]uint8{7, 7, 2, 2, 3, 1, 0, 3, 1, 1, 1, 1, 1, 1, 1, 1}
	best := simulated.TCBLevel{Components: full, PCESVN: 13, Date: now, Status: "UpToDate"}
	floor := simulated.TCBLevel{Date: now, Status: "OutOfDate"}
	check := func(name string, components [16]uint8, pce uint16, want Status) {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, simulated.PlatformOptions{Components: &components, PCESVN: pce})
			got, err := r.verifier.Verify(r.quote(t, 3), r.issue(t, simulated.CollateralOptions{Levels: []simulated.TCBLevel{best, floor}}), now)
			if err != nil || got.Status != want {
				t.Errorf("got %+v, %v, want %s", got, err, want)
			}
		})
	}
	check("exactly", full, 13, UpToDate)
	check("a newer PCE", full, 14, UpToDate)
	check("an older PCE", full, 12, OutOfDate)
	for i := range full {
		lower := full
		if lower[i] == 0 {
			continue
		}
		lower[i]--
		if other := (i + 3) % 16; other != i {
			lower[other] = 255 // an excess elsewhere does not make up for it
		}
		check("component "+string(rune('A'+i))+" lower", lower, 13, OutOfDate)
	}
}

func TestTheSameSimulatedQuoteUnderTwoGenerationsOfCollateral(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	q := r.quote(t, 3)
	later := simulated.DefaultLevels()
	later[0].PCESVN++
	before, err := r.verifier.Verify(q, r.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 17}), now)
	if err != nil {
		t.Fatal(err)
	}
	after, err := r.verifier.Verify(q, r.issue(t, simulated.CollateralOptions{EvaluationDataNumber: 19, Levels: later}), now)
	if err != nil {
		t.Fatal(err)
	}
	if before.Status != UpToDate || before.EvaluationDataNumber() != 17 || after.Status != OutOfDate || after.EvaluationDataNumber() != 19 {
		t.Errorf("got %s under %d, %s under %d", before.Status, before.EvaluationDataNumber(), after.Status, after.EvaluationDataNumber())
	}
}

func TestRevocationAndExpiryAreRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{Validity: 60 * 24 * time.Hour})
	serial := r.platform(t).PCKSerial()
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		opts     simulated.CollateralOptions
		at       time.Time
		check    Check
		artefact Artefact
	}{
		"the PCK is revoked": {simulated.CollateralOptions{RevokedPCKs: []*big.Int{big.NewInt(5), serial}}, now, CheckRevoked, ArtefactPCKCertificate},
		"the PCK CA is revoked": {simulated.CollateralOptions{RevokedCAs: []simulated.CA{simulated.PlatformCA}}, now,
			CheckRevoked, ArtefactPCKCA},
		"the TCB signing certificate is revoked": {simulated.CollateralOptions{RevokeTCBSigning: true}, now, CheckRevoked, ArtefactTCBSigning},
		"others are revoked": {simulated.CollateralOptions{
			RevokedPCKs: []*big.Int{new(big.Int).Add(serial, big.NewInt(1))}, RevokedCAs: []simulated.CA{simulated.ProcessorCA}}, now, "", ""},
		"the PCK CRL has expired":     {simulated.CollateralOptions{PCKCRLValidity: day}, issued.Add(day + 1), CheckValidity, ArtefactPCKCRL},
		"the PCK CRL is at its end":   {simulated.CollateralOptions{PCKCRLValidity: day}, issued.Add(day), "", ""},
		"the root's CRL has expired":  {simulated.CollateralOptions{RootCRLValidity: day}, issued.Add(day + 1), CheckValidity, ArtefactRootCACRL},
		"the root's CRL is at it end": {simulated.CollateralOptions{RootCRLValidity: day}, issued.Add(day), "", ""},
		"TCB info has expired": {simulated.CollateralOptions{Validity: day, PCKCRLValidity: 9 * day, RootCRLValidity: 9 * day},
			issued.Add(day + 1), CheckValidity, ArtefactTCBInfo},
		"the PCK certificate has expired": {simulated.CollateralOptions{Validity: 90 * day}, issued.Add(60*day + 1), CheckValidity, ArtefactPCKCertificate},
		"the clock is before everything":  {simulated.CollateralOptions{}, issued.Add(-time.Second), CheckValidity, ArtefactPCKCertificate},
		"the collateral is of tomorrow":   {simulated.CollateralOptions{At: now.Add(day)}, now, CheckValidity, ArtefactPCKCRL},
		"the clock is at zero":            {simulated.CollateralOptions{}, time.Time{}, CheckValidity, ArtefactPCKCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := r.verifier.Verify(r.quote(t, 3), r.issue(t, tc.opts), tc.at)
			if tc.check == "" {
				if err != nil || got.Status != UpToDate {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if got != nil {
				t.Errorf("a refusal came with a result")
			}
			refused(t, err, tc.check, tc.artefact)
		})
	}
}

func TestWhatExpiresFirstIsNamed(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{Validity: 5 * time.Hour})
	for artefact, tc := range map[Artefact]struct {
		opts simulated.CollateralOptions
		at   time.Time
	}{
		ArtefactPCKCertificate: {simulated.CollateralOptions{}, issued.Add(5 * time.Hour)},
		ArtefactPCKCRL:         {simulated.CollateralOptions{PCKCRLValidity: time.Hour}, issued.Add(time.Hour)},
		ArtefactRootCACRL:      {simulated.CollateralOptions{RootCRLValidity: time.Hour}, issued.Add(time.Hour)},
		ArtefactTCBInfo: {simulated.CollateralOptions{Validity: time.Hour, PCKCRLValidity: 2 * time.Hour, RootCRLValidity: 2 * time.Hour},
			issued.Add(time.Hour)},
	} {
		got, err := r.verifier.Verify(r.quote(t, 3), r.issue(t, tc.opts), issued.Add(time.Minute))
		if err != nil || got.ExpiresArtefact != artefact || !got.ExpiresAt.Equal(tc.at) {
			t.Errorf("got %+v, %v, want %s at %s", got, err, artefact, tc.at)
		}
	}
}

func TestMissingOrOversizedCollateralIsRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	q := r.quote(t, 3)
	fields := func(c *collateral.Collateral) []*[]byte {
		return []*[]byte{&c.TCBInfo, &c.QEIdentity, &c.TCBSigningChain, &c.PCKCRL, &c.RootCACRL}
	}
	for i := range 5 {
		for _, content := range [][]byte{nil, {}, make([]byte, 2<<20)} {
			c := r.issue(t, simulated.CollateralOptions{})
			*fields(c)[i] = content
			_, err := r.verifier.Verify(q, c, now)
			refused(t, err, CheckMissing, ArtefactCollateral)
		}
	}
	_, err := r.verifier.Verify(q, nil, now)
	refused(t, err, CheckMissing, ArtefactCollateral)
}

func TestCollateralOfAnotherKindOfPlatformIsRefused(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{})
	for name, tc := range map[string]struct {
		opts     simulated.CollateralOptions
		check    Check
		artefact Artefact
	}{
		"another FMSPC":        {simulated.CollateralOptions{FMSPC: [6]byte{1}}, CheckPlatform, ArtefactTCBInfo},
		"another PCEID":        {simulated.CollateralOptions{PCEID: [2]byte{0, 1}}, CheckPlatform, ArtefactTCBInfo},
		"the CRL of the other": {simulated.CollateralOptions{CA: simulated.ProcessorCA}, CheckCRL, ArtefactPCKCRL},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.verifier.Verify(r.quote(t, 3), r.issue(t, tc.opts), now)
			refused(t, err, tc.check, tc.artefact)
		})
	}
}

func TestOnlyThePinnedRootIsTrusted(t *testing.T) {
	r, other := newRig(t, simulated.PlatformOptions{}), newRig(t, simulated.PlatformOptions{})
	q, c := r.quote(t, 3), r.issue(t, simulated.CollateralOptions{})
	for name, tc := range map[string]struct {
		v        Verifier
		c        *collateral.Collateral
		artefact Artefact
	}{
		"no root is pinned":                             {Verifier{}, c, ArtefactSigningChain},
		"Intel's root is pinned":                        {intel(), c, ArtefactSigningChain},
		"another simulated root of the same name":       {other.verifier, c, ArtefactSigningChain},
		"the pinned root's collateral, another's quote": {other.verifier, other.issue(t, simulated.CollateralOptions{}), ArtefactPCKChain},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tc.v.Verify(q, tc.c, now)
			refused(t, err, CheckRoot, tc.artefact)
		})
	}
}

func TestCollateralSaysWhenItExpiresByItself(t *testing.T) {
	r := newRig(t, simulated.PlatformOptions{Validity: time.Minute}) // the PCK certificate is not of the collateral
	checked, err := r.verifier.CheckCollateral(r.issue(t, simulated.CollateralOptions{RootCRLValidity: time.Hour}))
	if err != nil {
		t.Fatal(err)
	}
	if at, artefact := checked.ExpiresAt(); !at.Equal(issued.Add(time.Hour)) || artefact != ArtefactRootCACRL {
		t.Errorf("got %v, %s", at, artefact)
	}
}
