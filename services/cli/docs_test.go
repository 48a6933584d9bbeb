package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func docs(name string) string { return filepath.Join("..", "..", "docs", name) }

func TestDocsErrorsIsWhatExplainSays(t *testing.T) {
	if *update {
		if err := os.WriteFile(docs("errors.md"), []byte(errorsDocument()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(docs("errors.md"))
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != errorsDocument() {
		t.Error("docs/errors.md is not current: go test ./services/cli -update")
	}
}

// errorsDocument is docs/errors.md: what explain says, of every reason.
func errorsDocument() string {
	var b strings.Builder
	b.WriteString(`# Errors

Every refusal has a typed reason. Over gRPC it is a status with a google.rpc.ErrorInfo detail: its domain is safeconduct.dev, and its metadata
has message, item, found, expected and remedy where they apply. Numbers and names are never used again for something else.
"safeconduct explain REASON" prints what is here.

After any of them the VM is where it was: on the source and running, unless its migration was already committed. A refusal counts in
safeconduct_refusals_total, by its reason. This file is generated from the text of "safeconduct explain"; a test checks it.

| number | reason | exit code | what it means |
|---|---|---|---|
`)
	all := explanations()
	for _, e := range all {
		v := e.view()
		fmt.Fprintf(&b, "| %d | [%s](#%s) | %d | %s |\n", v.Number, v.Reason, strings.ToLower(v.Reason), v.ExitCode, v.Means)
	}
	for _, e := range all {
		v := e.view()
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n", v.Reason, v.Means)
		section := func(title string, lines []string) {
			fmt.Fprintf(&b, "\n%s:\n\n", title)
			for _, l := range lines {
				fmt.Fprintf(&b, "- %s\n", l)
			}
		}
		section("Usual causes", v.Causes)
		section("What to do", []string{v.Do})
		section("Where to look", v.Look)
	}
	return b.String()
}

// referenceMark begins the part of docs/cli.md that is generated: everything after it.
const referenceMark = "\n## Every command\n"

func TestDocsCLIHasEveryCommandAndEveryExitCode(t *testing.T) {
	raw, err := os.ReadFile(docs("cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	written, generated, found := strings.Cut(string(raw), referenceMark)
	if !found {
		t.Fatalf("docs/cli.md has no %q", referenceMark)
	}
	if *update {
		generated = reference()
		if err := os.WriteFile(docs("cli.md"), []byte(written+referenceMark+generated), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if generated != reference() {
		t.Error("the commands in docs/cli.md are not current: go test ./services/cli -update")
	}
	for code, word := range []string{"done", "refused", "not authentic", "usage", "did not answer", "failed inside"} {
		if !regexp.MustCompile(`(?m)^\| ` + string(rune('0'+code)) + ` \|.*` + word).MatchString(written) {
			t.Errorf("docs/cli.md does not have exit code %d, %s", code, word)
		}
	}
	checkMentions(t, "docs/cli.md", string(raw))
}

// reference is every command that a user can see, with its flags.
func reference() string {
	var b strings.Builder
	b.WriteString("\nGenerated from the program; `safeconduct COMMAND --help` prints the same.\n")
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "completion" && sub.Name() != "help" {
				walk(sub)
			}
		}
		if c.HasAvailableSubCommands() {
			return
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n    %s\n", c.CommandPath(), orElse(c.Long, c.Short+"."), strings.TrimSuffix(c.UseLine(), " [flags]"))
		first := "\n"
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" {
				return
			}
			def := ""
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" {
				def = " (default " + f.DefValue + ")"
			}
			fmt.Fprintf(&b, "%s- `--%s`: %s%s\n", first, f.Name, f.Usage, def)
			first = ""
		})
	}
	walk(testRoot())
	return b.String()
}

// testRoot is the command line as it is without an environment.
func testRoot() *cobra.Command {
	a := &app{Env: Env{Getenv: func(string) string { return "" }}.withDefaults(), format: formatTable}
	root := a.root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}
