package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/appraisal"
	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/quote"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/tee"
)

func quoteCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "quote", Short: "Judge quotes from files, without a node service"}
	c.AddCommand(quoteVerifyCommand(a))
	return c
}

// quoteOptions are what a quote is judged by.
type quoteOptions struct {
	quote, collateral  string
	root               string
	policy, policyKeys string
	unsignedPolicy     bool
	at, reportData     string
	host               string
}

func quoteVerifyCommand(a *app) *cobra.Command {
	var o quoteOptions
	c := &cobra.Command{
		Use:   "verify --collateral DIR [--policy FILE (--policy-keys PEM | --unsigned-policy)] QUOTE",
		Short: "Verify a quote against collateral, and judge it by a policy",
		Long: `Verify a quote against collateral, and judge it by a policy. Nothing but the files named is read, and no network is used.

DIR holds tcb_info.json, qe_identity.json, tcb_signing_chain.pem, pck_crl.der and root_ca_crl.der, as Intel publishes them.

Without a policy nothing is accepted: what was verified is printed, and the exit code is 1. Quotes of TDs are verified and printed, and
never accepted: a policy accepts SGX enclaves. A quote that does not verify ends with exit code 2.`,
		Example: `  safeconduct quote verify --collateral ./collateral --policy policy.json --policy-keys policy-keys.pem quote.bin
  safeconduct quote verify --collateral ./collateral --at 2025-06-23T02:47:27Z -o json quote.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			o.quote = args[0]
			r, err := a.verifyQuote(&o)
			if err != nil {
				return err
			}
			return r.conclude(a.show(r, r.print))
		},
	}
	f := c.Flags()
	f.StringVar(&o.collateral, "collateral", "", "directory of the collateral")
	f.StringVar(&o.root, "root", "", "root certificate in PEM, of a simulated or test authority; Intel's production root without")
	f.StringVar(&o.policy, "policy", "", "policy that decides")
	f.StringVar(&o.policyKeys, "policy-keys", "", "public keys in PEM, one of which must have signed the policy")
	f.BoolVar(&o.unsignedPolicy, "unsigned-policy", false, "the policy is a bare document that nobody signed")
	f.StringVar(&o.at, "at", "", "moment at which to judge, as 2006-01-02T15:04:05Z; now without")
	f.StringVar(&o.reportData, "report-data", "", "128 hex digits that the quote must be bound to")
	f.StringVar(&o.host, "host", "", "host under whose enrolment in the policy the platform is judged")
	_ = c.MarkFlagRequired("collateral") // the flag is there
	c.MarkFlagsMutuallyExclusive("policy-keys", "unsigned-policy")
	return c
}

// quoteReport is what quote verify prints.
type quoteReport struct {
	verdict
	quoteFacts
	EAR *ear `json:"ear"`
}

// verifyQuote judges a quote. Its error is one of usage or input; a verdict of whatever kind is no error.
func (a *app) verifyQuote(o *quoteOptions) (*quoteReport, error) {
	in, err := a.readQuoteInputs(o)
	if err != nil {
		return nil, err
	}
	facts := quoteFacts{Crypto: "invalid", QuoteSHA256: hexOf(in.digest[:]), VerifyAt: stampTime(in.at)}
	result, err := dcap.Verifier{Root: in.pin}.Verify(in.quote, in.collateral, in.at)
	if err != nil {
		return a.quoteReport(in, facts, notAuthentic, nil, []*v1.Refusal{appraisal.QuoteRefusal(err).Proto()}), nil
	}
	facts.Crypto, facts.verifiedFacts = "valid", factsOf(result)
	attested := appraisal.AttestedOf(result, in.mode)
	if in.policy != nil && in.host != "" {
		attested.Host = in.host
		enrolled, _ := in.policy.Enrolled(in.host)
		attested.PlatformId = enrolled.PlatformID
	}
	refusals := in.judge(result)
	word := refused
	if len(refusals) == 0 && in.policy != nil {
		word = accepted
	}
	return a.quoteReport(in, facts, word, attested, refusals), nil
}

func (a *app) quoteReport(in *quoteInputs, facts quoteFacts, word string, attested *v1.Attested, refusals []*v1.Refusal) *quoteReport {
	ask := asked{unjudged: when(in.policy == nil, "there is no policy"), binding: in.bound != nil, host: in.host}
	if facts.verifiedFacts != nil && facts.domainFacts != nil {
		ask.unjudged = "the quote is a TD's"
	}
	checks := evidenceChecks(attested, refusals, ask)
	if attested != nil && in.policy == nil {
		checks = append(checks, failing(checkPolicy, noPolicy().Proto()))
	}
	r := &quoteReport{verdict: newVerdict(in.mode, word, checks), quoteFacts: facts}
	r.EAR = newEAR(a.Now(), offlineBuild(), "quote", appraisalOf(&r.verdict, attested, in.policyID())).until(attested)
	return r
}

func noPolicy() *refusal.Refusal {
	return refusal.New(v1.Reason_REASON_POLICY_REFUSED, "no policy was given, and without one nothing is accepted").Want("no policy", "a policy").
		Do("judge it by a policy: --policy FILE with --policy-keys PEM, or with --unsigned-policy")
}

// quoteInputs are the options, read.
type quoteInputs struct {
	quote      []byte
	digest     [32]byte
	collateral *collateral.Collateral
	pin        dcap.RootPin
	mode       v1.Mode
	policy     *policy.Loaded
	at         time.Time
	bound      *[64]byte
	host       string
}

func (in *quoteInputs) policyID() string {
	if in.policy == nil {
		return ""
	}
	return fmt.Sprintf("sha256:%x", in.policy.Digest)
}

// judge returns every objection of the policy. A policy of another mode, and one of enclaves where the quote is a TD's, objects to all.
func (in *quoteInputs) judge(r *dcap.Result) []*v1.Refusal {
	want := appraisal.Expectation{ReportData: in.bound, Host: in.host, Now: in.at}
	rules := new(policy.Policy)
	judged := in.policy != nil && r.Quote.SGX != nil
	if judged {
		rules = &in.policy.Policy
	}
	all := appraisal.Appraise(appraisal.ClaimsOf(r), rules, want)
	if !judged {
		// Only the binding can be judged: the zero policy objects to everything else, which says nothing.
		all = slices.DeleteFunc(all, func(o *refusal.Refusal) bool { return o.Reason != v1.Reason_REASON_QUOTE_NOT_BOUND })
	}
	if in.policy != nil && modeName(in.mode) != string(in.policy.Mode) {
		all = append(all, refusal.New(v1.Reason_REASON_MODE_MISMATCH, "the policy is for another mode than the root").On("mode").
			Want("a root of mode "+modeName(in.mode), "one of mode "+string(in.policy.Mode)))
	}
	if r.Quote.SGX == nil {
		all = append(all, refusal.New(v1.Reason_REASON_POLICY_REFUSED, "the quote is a TD's, and a policy accepts SGX enclaves").On("tee type").
			Want("TDX", "SGX").Do("judge TDs by other means; here they are verified, never accepted"))
	}
	out := make([]*v1.Refusal, 0, len(all))
	for _, o := range all {
		out = append(out, o.Proto())
	}
	return out
}

func (a *app) readQuoteInputs(o *quoteOptions) (*quoteInputs, error) {
	in := &quoteInputs{at: a.Now(), pin: dcap.IntelRoot(), mode: v1.Mode_MODE_INTEL, host: o.host}
	var err error
	if o.at != "" {
		if in.at, err = time.Parse(time.RFC3339, o.at); err != nil {
			return nil, advise(fmt.Errorf("--at: %w", err), "write the moment as 2025-06-23T02:47:27Z")
		}
	}
	if in.quote, err = readFile(o.quote, quote.MaxSize); err != nil {
		return nil, err
	}
	in.digest = sha256.Sum256(in.quote)
	if in.collateral, err = collateral.LoadDir(o.collateral); err != nil {
		return nil, advise(fmt.Errorf("--collateral %s: %w", o.collateral, err), "fetch the collateral: safeconduct pccs fetch, or take a node's")
	}
	if o.root != "" {
		if in.pin, in.mode, err = readRoot(o.root); err != nil {
			return nil, err
		}
	}
	if in.bound, err = parseReportData(o.reportData); err != nil {
		return nil, err
	}
	in.policy, err = readPolicy(o)
	return in, err
}

// readRoot pins another root than Intel's: what it vouches for is simulated.
func readRoot(path string) (dcap.RootPin, v1.Mode, error) {
	raw, err := readFile(path, collateral.MaxTCBSigningChain)
	if err != nil {
		return dcap.RootPin{}, 0, err
	}
	pin, err := dcap.PinPEM(raw)
	if err != nil {
		return dcap.RootPin{}, 0, advise(fmt.Errorf("--root %s: %w", path, err),
			"give one certificate in PEM, such as a simulated authority's root_ca.pem")
	}
	if pin == dcap.IntelRoot() {
		return pin, v1.Mode_MODE_INTEL, nil
	}
	return pin, v1.Mode_MODE_SIMULATED, nil
}

func parseReportData(text string) (*[64]byte, error) {
	if text == "" {
		return nil, nil
	}
	raw, err := hex.DecodeString(text)
	if err == nil && len(raw) != tee.ReportDataSize {
		err = fmt.Errorf("%d bytes, not %d", len(raw), tee.ReportDataSize)
	}
	if err != nil {
		return nil, advise(fmt.Errorf("--report-data: %w", err), "give 128 hex digits")
	}
	return (*[64]byte)(raw), nil
}

func readPolicy(o *quoteOptions) (*policy.Loaded, error) {
	switch {
	case o.policy == "" && (o.policyKeys != "" || o.unsignedPolicy):
		return nil, advise(errors.New("--policy-keys and --unsigned-policy need --policy"), "name the policy file too")
	case o.policy == "":
		return nil, nil
	case o.policyKeys == "" && !o.unsignedPolicy:
		return nil, advise(errors.New("--policy needs --policy-keys, or --unsigned-policy"),
			"say whose signature the policy must bear, or that it needs none")
	}
	raw, err := readFile(o.policy, policy.MaxEnvelope)
	if err != nil {
		return nil, err
	}
	if o.unsignedPolicy {
		p, err := policy.Parse(raw)
		return p, advise(err, "correct "+o.policy+"; a signed policy is read with --policy-keys")
	}
	keys, err := readKeys(o.policyKeys)
	if err != nil {
		return nil, err
	}
	p, err := policy.Open(raw, keys)
	return p, advise(err, "get the policy that the operator signed, or the keys of who signed it: safeconduct policy show "+o.policy)
}
