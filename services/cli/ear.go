package cli

import (
	"encoding/base64"
	"slices"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/version"
)

// earProfile names the vocabulary: EAT Attestation Results, draft-ietf-rats-ear-04. That draft spells its claims with underscores; the
// drafts before it had "ear.status".
const earProfile = "tag:ietf.org,2026:rats/ear#04"

// ear is the claims of an attestation result. It is not signed, so that it is no EAR token: it is as good as the channel it came by.
type ear struct {
	Profile    string                  `json:"eat_profile"`
	IssuedAt   int64                   `json:"iat"`
	Expires    int64                   `json:"exp,omitempty"`
	VerifierID earVerifier             `json:"ear_verifier_id"`
	Nonce      string                  `json:"eat_nonce,omitempty"`
	Submods    map[string]earAppraisal `json:"submods"`
}

type earVerifier struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

// earAppraisal is the result on one attester.
type earAppraisal struct {
	Status    string         `json:"ear_status"`
	Vector    map[string]int `json:"ear_trustworthiness_vector,omitempty"`
	PolicyIDs []string       `json:"ear_appraisal_policy_ids,omitempty"`
	Attester  map[string]any `json:"ear_attester_claims,omitempty"`
	Verifier  map[string]any `json:"ear_verifier_claims"`
}

// Trustworthiness claims of AR4SI (draft-ietf-rats-ar4si, section 2.3.4) that are made here.
const (
	arAffirming       = 2
	arWarning         = 32
	arContraindicated = 96
	// arUnrecognised: instance-identity and hardware that are not recognised.
	arUnrecognised = 97
	// arCrypto: the evidence does not verify.
	arCrypto = 99
)

// newEAR makes the result on the one attester that was judged.
func newEAR(now time.Time, build, attester string, appraisal earAppraisal) *ear {
	return &ear{
		Profile: earProfile, IssuedAt: now.Unix(), VerifierID: earVerifier{Developer: "https://github.com/safeconduct/safeconduct", Build: build},
		Submods: map[string]earAppraisal{attester: appraisal},
	}
}

// offlineBuild names this program as the verifier, nodeBuild the node service.
func offlineBuild() string { return "safeconduct " + version.Version }

const nodeBuild = "safeconductd"

func (e *ear) withNonce(nonce []byte) *ear {
	e.Nonce = base64.RawURLEncoding.EncodeToString(nonce)
	return e
}

func (e *ear) until(a *v1.Attested) *ear {
	if a.GetExpiresAt() != nil {
		e.Expires = a.GetExpiresAt().AsTime().Unix()
	}
	return e
}

// appraisalOf says a verdict in the words of EAR. The status is never above what the verdict is: accepted is affirming, or a warning
// if the policy tolerated something or nothing but a simulation stands behind it; evidence that is authentic and that no policy
// judged has none; everything else is contraindicated.
func appraisalOf(v *verdict, a *v1.Attested, policyID string) earAppraisal {
	out := earAppraisal{Vector: vectorOf(v, a), Verifier: map[string]any{"safeconduct": verifierClaims(v)}}
	if policyID != "" {
		out.PolicyIDs = []string{policyID}
	}
	if a != nil {
		out.Attester = map[string]any{"safeconduct": viewAttested(a)}
	}
	switch {
	case v.Accepted && worst(out.Vector) < arWarning:
		out.Status = "affirming"
	case v.Accepted:
		out.Status = "warning"
	case outcomeOf(v.Checks, checkPolicy) == notPassed, v.Verdict == unreachable, v.Verdict == failed:
		out.Status = "none"
	default:
		out.Status = "contraindicated"
	}
	return out
}

func worst(vector map[string]int) int {
	most := 0
	for _, claim := range vector {
		most = max(most, claim)
	}
	return most
}

// verifierClaims are claims of the verifier's own, so that the result says enough by itself.
func verifierClaims(v *verdict) map[string]any {
	reasons := []string{}
	for _, c := range v.Checks {
		if c.Reason != "" && !slices.Contains(reasons, c.Reason) {
			reasons = append(reasons, c.Reason)
		}
	}
	return map[string]any{"mode": v.Mode, "verdict": v.Verdict, "reasons": reasons}
}

func outcomeOf(checks []check, name string) string {
	i := slices.IndexFunc(checks, func(c check) bool { return c.Check == name })
	if i < 0 {
		return notJudged
	}
	return checks[i].Outcome
}

// vectorOf makes the trustworthiness claims that the checks support. What was not judged has no claim.
func vectorOf(v *verdict, a *v1.Attested) map[string]int {
	out := map[string]int{}
	if outcomeOf(v.Checks, checkEvidence) == notPassed {
		out["hardware"] = arCrypto
		return out
	}
	claim := func(name, checkName string, good, bad int) {
		switch outcomeOf(v.Checks, checkName) {
		case passed:
			out[name] = max(out[name], good)
		case notPassed:
			out[name] = max(out[name], bad)
		}
	}
	claim("instance-identity", checkEnrolment, arAffirming, arUnrecognised)
	claim("executables", checkMeasurement, arAffirming, arContraindicated)
	claim("configuration", checkDebug, configurationClaim(a), arContraindicated)
	claim("hardware", checkTCBStatus, hardwareClaim(a), arContraindicated)
	claim("hardware", checkAdvisories, advisoryClaim(a), arContraindicated)
	claim("hardware", checkCollateral, arAffirming, arContraindicated)
	claim("file-system", checkIntegrity, arAffirming, arContraindicated)
	if v.Mode != "intel" && a != nil {
		out["hardware"] = max(out["hardware"], arWarning) // there is none
	}
	return out
}

func configurationClaim(a *v1.Attested) int {
	if a.GetDebug() {
		return arWarning
	}
	return arAffirming
}

func hardwareClaim(a *v1.Attested) int {
	if a.GetTcbStatus() == "UpToDate" {
		return arAffirming
	}
	return arWarning
}

func advisoryClaim(a *v1.Attested) int {
	if len(a.GetAdvisoryIds()) == 0 {
		return arAffirming
	}
	return arWarning
}
