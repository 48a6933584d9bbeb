package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
	"github.com/safeconduct/safeconduct/integrity/replay"
)

// maxLogFile bounds a log in a file, in bytes: JSON takes some three times the bytes of a log.
const maxLogFile = 4 * hostlog.MaxSize

func integrityCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "integrity", Short: "Measure this host, appraise a host's log, make reference values, replay logs of firmware and kernel"}
	values := &cobra.Command{Use: "policy", Short: "Make and compare reference values, which a policy's \"integrity\" holds"}
	values.AddCommand(generateCommand(a), diffCommand(a), rollCommand(a))
	c.AddCommand(measureCommand(a), showCommand(a), appraiseCommand(a), replayCommand(a), values)
	return c
}

// logView is what measure and show print; its "log" is what appraise and policy generate read.
type logView struct {
	MeasuredAt string          `json:"measured_at,omitempty"`
	Log        json.RawMessage `json:"log"`

	log *v1.IntegrityLog
}

func viewLog(log *v1.IntegrityLog) (*logView, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(log)
	return &logView{MeasuredAt: stamp(log.GetMeasuredAt()), Log: raw, log: log}, err
}

func (v *logView) print(s *sheet) {
	s.field("host", v.log.GetHost())
	s.field("measured", v.MeasuredAt)
	rows := make([][]string, 0, len(v.log.GetEntries()))
	for _, e := range v.log.GetEntries() {
		digest := hexOf(e.GetDigest())
		if e.GetAbsent() != "" {
			digest = "absent: " + e.GetAbsent()
		}
		rows = append(rows, []string{e.GetName(), digest, e.GetPath()})
	}
	s.blank()
	s.rows([]string{"ITEM", "SHA-256", "PATH"}, rows)
	for _, e := range v.log.GetEntries() {
		if e.GetText() != "" {
			s.blank()
			s.line("%s: %s", e.GetName(), e.GetText())
		}
	}
	s.blank()
	if q := v.log.GetTpmQuote(); q != nil {
		rows = rows[:0]
		for _, p := range q.GetPcrs() {
			rows = append(rows, []string{fmt.Sprintf("pcr/%d", p.GetIndex()), hexOf(p.GetValue())})
		}
		s.rows([]string{"TPM QUOTE", "SHA-256"}, rows)
	} else {
		s.line("no TPM: nothing but the host's kernel vouches for these values")
	}
	for _, at := range v.log.GetAttachments() {
		s.line("attachment %s: %d bytes", at.GetName(), at.GetSize())
	}
}

func measureCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "measure", Short: "Measure this host now", Args: cobra.NoArgs,
		Long: "Measure this host now. With -o json the output is what \"appraise\" and \"policy generate\" read. The TPM quote in it proves no freshness.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.MeasureResponse, error) {
				return v1.NewIntegrityServiceClient(c).Measure(ctx, &v1.MeasureRequest{})
			})
			if err != nil {
				return err
			}
			v, err := viewLog(answer.GetLog())
			if err != nil {
				return err
			}
			return a.show(v, v.print)
		},
	}
}

func showCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the log that this host showed last, without measuring", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), a, func(ctx context.Context, c *grpc.ClientConn) (*v1.GetLogResponse, error) {
				return v1.NewIntegrityServiceClient(c).GetLog(ctx, &v1.GetLogRequest{})
			})
			if err != nil {
				return err
			}
			v, err := viewLog(answer.GetLog())
			if err != nil {
				return err
			}
			return a.show(v, v.print)
		},
	}
}

// readLog reads what measure printed.
func readLog(path string) (*v1.IntegrityLog, error) {
	raw, err := readFile(path, maxLogFile)
	if err != nil {
		return nil, err
	}
	const do = "give the output of: safeconduct integrity measure -o json"
	var v logView
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, advise(fmt.Errorf("%s: %w", path, err), do)
	}
	log := new(v1.IntegrityLog)
	if err := protojson.Unmarshal(v.Log, log); err != nil {
		return nil, advise(fmt.Errorf("%s: %w", path, err), do)
	}
	if err := hostlog.Validate(log); err != nil {
		return nil, advise(fmt.Errorf("%s: %w", path, err), do)
	}
	return log, nil
}

// readReference reads reference values: of a policy, signed or bare, or by themselves.
func readReference(path string) (*appraise.ReferenceValues, error) {
	raw, err := readFile(path, policy.MaxEnvelope)
	if err != nil {
		return nil, err
	}
	if payload, err := policy.Unverified(raw); err == nil {
		raw = payload
	}
	if p, err := policy.Parse(raw); err == nil {
		return &p.Integrity, nil
	}
	refs := new(appraise.ReferenceValues)
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.DisallowUnknownFields()
	err = dec.Decode(refs)
	if err == nil {
		err = refs.Validate()
	}
	return refs, advise(wrapPath(path, err), "give a policy, or the output of: safeconduct integrity policy generate")
}

func wrapPath(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, err)
}

// appraisalView is what appraise prints.
type appraisalView struct {
	Accepted   bool           `json:"accepted"`
	Host       string         `json:"host"`
	Matched    []string       `json:"matched,omitempty"`
	Unjudged   []string       `json:"unjudged,omitempty"`
	Mismatches []mismatchView `json:"mismatches,omitempty"`
}

type mismatchView struct {
	Item     string `json:"item"`
	Kind     string `json:"kind"`
	Found    string `json:"found"`
	Expected string `json:"expected"`
	Do       string `json:"do,omitempty"`
}

func (v *appraisalView) print(s *sheet) {
	verdict := "ACCEPTED"
	if !v.Accepted {
		verdict = "REFUSED"
	}
	s.line("%s  host %s: %d items match, %d are not judged, %d objections", verdict, v.Host, len(v.Matched), len(v.Unjudged), len(v.Mismatches))
	for _, m := range v.Mismatches {
		s.blank()
		s.line("%s (%s)", m.Item, m.Kind)
		s.field("  found", m.Found)
		s.field("  expected", m.Expected)
		s.field("  do", m.Do)
	}
}

func appraiseCommand(a *app) *cobra.Command {
	var reference, bootLog, imaList string
	c := &cobra.Command{
		Use: "appraise --policy FILE LOG", Short: "Judge a host's log by reference values, and list everything that speaks against it", Args: cobra.ExactArgs(1),
		Long: `Judge a host's log by reference values, and list everything that speaks against it.

This is for looking before a change: who signed the policy is not asked, and the log's own time and TPM key are taken as they are. A node that judges its peer
takes none of them on its word.`,
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		refs, err := readReference(reference)
		if err != nil {
			return err
		}
		log, err := readLog(args[0])
		if err != nil {
			return err
		}
		fetch, err := attachments(map[string]string{hostlog.AttachmentBoot: bootLog, hostlog.AttachmentIMA: imaList})
		if err != nil {
			return err
		}
		v := appraise.Appraise(log, refs, expectationOf(log, fetch))
		out := &appraisalView{Accepted: v.Accepted(), Host: log.GetHost(), Matched: v.Matched, Unjudged: v.Unjudged}
		for _, m := range v.Mismatches {
			out.Mismatches = append(out.Mismatches, mismatchView{m.Item, string(m.Kind), m.Found, m.Expected, m.Remedy})
		}
		if v.FetchErr != nil {
			return advise(v.FetchErr, "give the host's boot log and IMA list: --boot-log, --ima-list")
		}
		if err := a.show(out, out.print); err != nil {
			return err
		}
		if !out.Accepted {
			return ended{ExitRefused}
		}
		return nil
	}
	f := c.Flags()
	f.StringVar(&reference, "policy", "", "a policy, signed or bare, or reference values by themselves")
	f.StringVar(&bootLog, "boot-log", "", "the host's boot log, if the log names one as an attachment")
	f.StringVar(&imaList, "ima-list", "", "the host's binary IMA list, if the log names one as an attachment")
	_ = c.MarkFlagRequired("policy") // the flag is there
	return c
}

// expectationOf takes a log's own time, host and TPM key as they are.
func expectationOf(log *v1.IntegrityLog, fetch appraise.Fetch) appraise.Expectation {
	return appraise.Expectation{
		Host: log.GetHost(), AKPublic: log.GetTpmQuote().GetAkPublic(), Now: log.GetMeasuredAt().AsTime(), MaxAge: time.Second, Fetch: fetch,
	}
}

// attachments serves files as the attachments of a log.
func attachments(paths map[string]string) (appraise.Fetch, error) {
	content := map[string][]byte{}
	for name, path := range paths {
		if path == "" {
			continue
		}
		raw, err := readFile(path, hostlog.MaxAttachment)
		if err != nil {
			return nil, err
		}
		content[name] = raw
	}
	return func(name string, offset uint64) ([]byte, error) {
		raw, ok := content[name]
		if !ok || offset > uint64(len(raw)) {
			return nil, fmt.Errorf("the log names an attachment %q that was not given, or that is longer", name)
		}
		return raw[offset:], nil
	}, nil
}

func replayCommand(a *app) *cobra.Command {
	var eventlog, ima, pcrs string
	var options replay.Options
	c := &cobra.Command{
		Use: "replay (--eventlog FILE | --ima FILE) [--pcrs FILE]", Short: "Replay a boot log or an IMA list, and name every problem in it", Args: cobra.NoArgs,
		Long: `Replay a boot log or an IMA list, and name every problem in it. With PCR values it says whether the log explains them. The values are a file's, which
no TPM signed: this is for looking, not for deciding. The exit code is 1 if there are problems.`,
		RunE: func(*cobra.Command, []string) error {
			var values replay.PCRs
			if pcrs != "" {
				f, err := os.Open(pcrs)
				if err != nil {
					return advise(err, "check the path and who may read it")
				}
				values, err = replay.ParsePCRs(f)
				_ = f.Close() // nothing was written
				if err != nil {
					return advise(wrapPath(pcrs, err), "give PCR values as JSON: {\"banks\": {\"SHA256\": {\"0\": \"hex\"}}}")
				}
			}
			run, path := replay.EventLog, eventlog
			if ima != "" {
				run, path = replay.IMA, ima
			}
			f, err := os.Open(path)
			if err != nil {
				return advise(err, "check the path and who may read it")
			}
			defer f.Close() //nolint:errcheck // nothing was written
			result := run(f, values, options)
			if err := a.show(result, func(s *sheet) { printReplay(s, result) }); err != nil {
				return err
			}
			if !result.OK {
				return ended{ExitRefused}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&eventlog, "eventlog", "", "boot event log (TCG PC Client, binary)")
	f.StringVar(&ima, "ima", "", "IMA measurement list, binary or ASCII")
	f.StringVar(&pcrs, "pcrs", "", "PCR values to compare with, as JSON")
	f.BoolVar(&options.AllowSHA1, "allow-sha1", false, "accept a log without the SHA-256 bank")
	f.BoolVar(&options.Events, "events", false, "list the events of a boot log")
	c.MarkFlagsOneRequired("eventlog", "ima")
	c.MarkFlagsMutuallyExclusive("eventlog", "ima")
	return c
}

func printReplay(s *sheet, r *replay.Result) {
	s.line("%s log: %d entries, %d problems", r.Kind, r.Entries, len(r.Problems)+r.ProblemsOmitted)
	if r.Prefix != nil {
		s.line("the PCR values cover the first %d entries; %d follow, of which they say nothing", r.Prefix.Entries, r.Prefix.Ignored)
	}
	s.field("secure boot", r.SecureBoot)
	for _, line := range r.CommandLines {
		s.field("command line", line)
	}
	var rows [][]string
	for _, bank := range []string{"sha1", "sha256", "sha384", "sha512"} {
		for index := range 24 {
			if value, ok := r.Banks[bank][index]; ok {
				rows = append(rows, []string{bank, fmt.Sprint(index), value})
			}
		}
	}
	s.blank()
	s.rows([]string{"BANK", "PCR", "REPLAYED"}, rows)
	for _, p := range r.Problems {
		s.blank()
		s.line("%s: %s", p.Kind, p.Message)
		s.field("  found", p.Found)
		s.field("  expected", p.Expected)
	}
}
