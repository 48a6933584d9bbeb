package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// policyChange is one line of policy diff.
type policyChange struct {
	// Path of what changed; an element of a list is named by what it is about, not by its place.
	Path   string `json:"path"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Effect is "accepts more", "accepts less", or empty where it is neither, or cannot be told from the one line.
	Effect string `json:"effect,omitempty"`
}

const (
	acceptsMore = "accepts more"
	acceptsLess = "accepts less"
)

// readAnyPolicy reads a policy, signed or bare, without asking who signed it.
func readAnyPolicy(path string) (*policy.Loaded, error) {
	raw, err := readFile(path, policy.MaxEnvelope)
	if err != nil {
		return nil, err
	}
	if payload, err := policy.Unverified(raw); err == nil {
		raw = payload
	}
	p, err := policy.Parse(raw)
	return p, advise(wrapPath(path, err), "give a policy, signed or bare")
}

func policyDiffCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "diff OLD NEW", Short: "List what a new policy changes, and whether it accepts more or less", Args: cobra.ExactArgs(2),
		Long: `List what a new policy changes, and whether it accepts more or less. The policies may be signed or bare; who signed them is not asked.

Exit code 0: nothing that is accepted or refused changes. 1: something does.`,
		RunE: func(_ *cobra.Command, args []string) error {
			var sides [2]map[string]string
			var svn [2]uint64
			for i, path := range args {
				p, err := readAnyPolicy(path)
				if err != nil {
					return err
				}
				svn[i] = p.SVN
				if sides[i], err = flatten(&p.Policy); err != nil {
					return err
				}
			}
			v := &policyDiffView{OldSVN: svn[0], NewSVN: svn[1], Changes: changesBetween(sides[0], sides[1])}
			if err := a.show(v, v.print); err != nil {
				return err
			}
			if len(v.Changes) > 0 {
				return ended{ExitRefused}
			}
			return nil
		},
	}
}

type policyDiffView struct {
	OldSVN  uint64         `json:"old_policy_svn"`
	NewSVN  uint64         `json:"new_policy_svn"`
	Changes []policyChange `json:"changes"`
}

func (v *policyDiffView) print(s *sheet) {
	s.line("policy svn %d -> %d%s", v.OldSVN, v.NewSVN, when(v.NewSVN <= v.OldSVN, ": nodes that have the old one will refuse the new one"))
	for _, c := range v.Changes {
		mark := map[bool]string{true: "+", false: "-"}[c.Before == ""]
		if c.Before != "" && c.After != "" {
			mark = "~"
		}
		value := c.After
		if c.Before != "" {
			value = strings.TrimSuffix(c.Before+" -> "+c.After, " -> ")
		}
		s.line("%s %-12s %s: %s", mark, c.Effect, c.Path, value)
	}
	if len(v.Changes) == 0 {
		s.line("nothing that is accepted or refused changes")
	}
}

// flatten makes one entry of each thing that the policy says; the order of lists does not matter, nor does what is left out.
func flatten(p *policy.Policy) (map[string]string, error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	var document map[string]any
	if err := json.Unmarshal(raw, &document); err != nil {
		return nil, err
	}
	delete(document, "policy_svn")
	out := map[string]string{}
	flattenInto(out, "", document)
	return out, nil
}

func flattenInto(out map[string]string, path string, value any) {
	switch v := value.(type) {
	case nil:
	case map[string]any:
		for key, inner := range v {
			flattenInto(out, strings.TrimPrefix(path+"."+key, "."), inner)
		}
	case []any:
		for _, element := range v {
			if object, ok := element.(map[string]any); ok {
				flattenInto(out, path+"["+nameOf(object)+"]", object)
				continue
			}
			text := fmt.Sprint(element)
			out[path+"["+text+"]"] = text
		}
	case float64:
		out[path] = strconv.FormatFloat(v, 'f', -1, 64)
	default:
		out[path] = fmt.Sprint(v)
	}
}

// nameOf is what an element of a list is about.
func nameOf(object map[string]any) string {
	for _, key := range []string{"host", "mrenclave", "mrsigner", "name"} {
		if text, ok := object[key].(string); ok && text != "" {
			return text
		}
	}
	raw, _ := json.Marshal(object) // it came from JSON
	return string(raw)
}

func changesBetween(before, after map[string]string) []policyChange {
	changes := []policyChange{}
	paths := slices.Concat(slices.Collect(maps.Keys(before)), slices.Collect(maps.Keys(after)))
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		if before[path] != after[path] {
			changes = append(changes, policyChange{Path: path, Before: before[path], After: after[path], Effect: effect(path, before[path], after[path])})
		}
	}
	return changes
}

// effect tells what a change does to what is accepted, where that is plain from the path: more of a list of what is accepted, a lower minimum, a
// requirement that goes.
func effect(path, before, after string) string {
	direction := func(more bool) string { return map[bool]string{true: acceptsMore, false: acceptsLess}[more] }
	last := path[strings.LastIndex(path, ".")+1:]
	switch {
	case strings.HasSuffix(last, "name"), strings.HasSuffix(last, "not_before"):
		return ""
	case strings.HasPrefix(last, "min_"):
		was, _ := strconv.ParseFloat(before, 64) // absent is no minimum: 0
		is, _ := strconv.ParseFloat(after, 64)
		return direction(is < was)
	case last == "required", last == "secure_boot":
		// A file must be there unless required is false; a boot log and Secure Boot need not unless it is true.
		return direction(after == "false" || after == "" && before == "true")
	case last == "debug", last == "allow_absent", last == "allow_violations", last == "report_only":
		return direction(after == "true")
	case last == "enrolment":
		return direction(after == "none")
	case last == "unlisted":
		return direction(after == "report")
	case last == "local_save":
		return direction(after == "seal")
	case strings.Contains(last, "not_after") || last == "max_collateral_age" || strings.Contains(path, "not_after"):
		return direction(after == "" || before != "" && after > before)
	case before == "" || after == "":
		return direction(before == "")
	}
	return ""
}

func policyTestCommand(a *app) *cobra.Command {
	var bootLog, imaList string
	c := &cobra.Command{
		Use: "test POLICY LOG...", Short: "Judge hosts as they are by a policy that is not in force yet", Args: cobra.MinimumNArgs(2),
		Long: `Judge hosts as they are by a policy that is not in force yet: each LOG is a host's ("safeconduct integrity show" or "measure" on it). For each
host it is said whether its platform is enrolled under the TPM key that its log shows, and what in the log the reference values refuse.

Who signed the policy is not asked, nor is the log's time. The enclave and its platform's TCB are judged by "safeconduct quote verify --policy".

Exit code 0: the policy refuses none of them. 1: it refuses some.`,
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		p, err := readAnyPolicy(args[0])
		if err != nil {
			return err
		}
		fetch, err := attachments(map[string]string{hostlog.AttachmentBoot: bootLog, hostlog.AttachmentIMA: imaList})
		if err != nil {
			return err
		}
		v := &policyTestView{}
		for _, path := range args[1:] {
			h, err := testHost(&p.Policy, path, fetch)
			if err != nil {
				return err
			}
			v.Hosts = append(v.Hosts, h)
			v.Refused += map[bool]int{true: 0, false: 1}[h.Accepted]
		}
		if err := a.show(v, v.print); err != nil {
			return err
		}
		if v.Refused > 0 {
			return ended{ExitRefused}
		}
		return nil
	}
	c.Flags().StringVar(&bootLog, "boot-log", "", "the boot log of the host, if its log names one as an attachment; with one LOG")
	c.Flags().StringVar(&imaList, "ima-list", "", "the binary IMA list of the host, likewise")
	return c
}

type policyTestView struct {
	Refused int              `json:"refused"`
	Hosts   []policyTestHost `json:"hosts"`
}

type policyTestHost struct {
	Host     string   `json:"host"`
	File     string   `json:"file"`
	Accepted bool     `json:"accepted"`
	Matched  int      `json:"matched"`
	Unjudged int      `json:"unjudged"`
	Against  []string `json:"against"`
}

func (v *policyTestView) print(s *sheet) {
	for _, h := range v.Hosts {
		if h.Accepted {
			s.line("ok       %s: %d items match, %d unjudged", h.Host, h.Matched, h.Unjudged)
			continue
		}
		s.line("REFUSED  %s", h.Host)
		for _, text := range h.Against {
			s.line("         %s", text)
		}
	}
	s.line("%d of %d hosts are refused", v.Refused, len(v.Hosts))
}

func testHost(p *policy.Policy, path string, fetch appraise.Fetch) (policyTestHost, error) {
	log, err := readLog(path)
	if err != nil {
		return policyTestHost{}, err
	}
	h := policyTestHost{Host: log.GetHost(), File: path, Against: []string{}}
	enrolled, ok := p.Enrolled(h.Host)
	switch {
	case !ok && p.Enrolment != "none":
		h.Against = append(h.Against, "platforms has no entry for this host: safeconduct enroll on it shows one")
	case ok && string(enrolled.TPMKey) != string(log.GetTpmQuote().GetAkPublic()):
		h.Against = append(h.Against, "its log is quoted by another TPM key than the enrolled one")
	}
	verdict := appraise.Appraise(log, &p.Integrity, expectationOf(log, fetch))
	if verdict.FetchErr != nil {
		return h, advise(verdict.FetchErr, "give the host's boot log and IMA list: --boot-log, --ima-list")
	}
	h.Matched, h.Unjudged = len(verdict.Matched), len(verdict.Unjudged)
	for _, m := range verdict.Mismatches {
		h.Against = append(h.Against, fmt.Sprintf("%s: found %s, expected %s", m.Item, orElse(m.Found, "nothing"), orElse(m.Expected, "nothing")))
	}
	h.Accepted = len(h.Against) == 0 && verdict.Accepted()
	return h, nil
}
