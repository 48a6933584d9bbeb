// Package cli is the operator's command line, safeconduct: it asks the node service of this host, and judges files without one.
//
// Every result is printed for people (a table) or for machines (-o json, -o yaml), with the mode of the trusted execution environment on
// every verdict. Every command ends with one of the exit codes of exit.go. What is printed of a peer is escaped before it reaches a terminal.
//
// A command group is one file with one constructor; groups lists them.
//
// Non-goals: no OpenStack, no secrets on standard output, no configuration file, no colours.
package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/image"
	"github.com/safeconduct/safeconduct/services/pccs"
	"github.com/safeconduct/safeconduct/services/version"
)

// DefaultSocket is the node service's local.socket of the sample configuration.
const DefaultSocket = "/run/safeconduct/node.sock"

// SocketVariable is the environment variable that replaces DefaultSocket.
const SocketVariable = "SAFECONDUCT_SOCKET"

// Env is what the command line takes from its process. The zero value of a field means the process's own.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
	// Rand is the source of nonces and keys.
	Rand io.Reader
}

func (e Env) withDefaults() Env {
	if e.In == nil {
		e.In = os.Stdin
	}
	if e.Out == nil {
		e.Out = os.Stdout
	}
	if e.Err == nil {
		e.Err = os.Stderr
	}
	if e.Getenv == nil {
		e.Getenv = os.Getenv
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.Rand == nil {
		e.Rand = rand.Reader
	}
	return e
}

// app is one run of the command line: its environment and its global flags.
type app struct {
	Env
	socket  string
	timeout time.Duration
	format  format
}

// Run runs the command line until it ends, or SIGINT or SIGTERM end it, and returns its exit code.
func Run(ctx context.Context, args []string, env Env) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{Env: env.withDefaults(), format: formatTable}
	root := a.root()
	root.SetArgs(args)
	return a.exit(root.ExecuteContext(ctx))
}

// exit reports an error and returns the exit code.
func (a *app) exit(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[ended](err); ok {
		return e.code
	}
	p := problemOf(err)
	s := &sheet{w: a.Err}
	if p.Reason != "" {
		s.line("safeconduct: %s: %s", p.Reason, p.Message)
	} else {
		s.line("safeconduct: %s", p.Message)
	}
	s.field("item:", p.Item)
	s.field("found:", p.Found)
	s.field("expected:", p.Expected)
	s.field("do:", p.Do)
	if a.format != formatTable {
		// A machine reads one document, whatever happened.
		_ = a.show(struct { // the exit code tells if this fails too
			Error problem `json:"error"`
		}{p}, nil)
	}
	return p.Code
}

// group is a part of the command list in the help.
type group struct {
	id, title string
	commands  []func(*app) *cobra.Command
}

// groups is every command, in the order of the help.
func groups() []group {
	return []group{
		{"judge", "Judge:", []func(*app) *cobra.Command{attestCommand, preflightCommand, quoteCommand, explainCommand}},
		{"operate", "Operate a node:", []func(*app) *cobra.Command{statusCommand, doctorCommand, waitCommand, reloadCommand, drainCommand, logLevelCommand, auditCommand}},
		{"migrations", "Migrations:", []func(*app) *cobra.Command{migrationsCommand, secretsCommand, receiptCommand, imageCommand}},
		{"prepare", "Prepare:", []func(*app) *cobra.Command{policyCommand, integrityCommand, enrollCommand, helperCommand, pccsCommand}},
	}
}

func pccsCommand(*app) *cobra.Command    { return pccs.Command() }
func imageCommand(a *app) *cobra.Command { return image.Command(a.crypto) }

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "safeconduct",
		Short: "Operate Safeconduct: attested live migration of VMs with a vTPM",
		Long: `Operate Safeconduct: attested live migration of VMs with a vTPM.

Exit codes: 0 done or accepted, 1 refused, 2 not authentic, 3 usage or input, 4 no answer, 5 a service failed inside.`,
		Version: version.Version, SilenceUsage: true, SilenceErrors: true,
	}
	c.SetIn(a.In)
	c.SetOut(a.Out)
	c.SetErr(a.Err)
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return advise(err, fmt.Sprintf("see %s --help", c.CommandPath()))
	})
	f := c.PersistentFlags()
	f.StringVar(&a.socket, "socket", orElse(a.Getenv(SocketVariable), DefaultSocket),
		"unix socket of the node service; "+SocketVariable+" replaces the default")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for the node service")
	f.VarP(&a.format, "output", "o", "table, json or yaml")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"},
		cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	for _, g := range groups() {
		c.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, construct := range g.commands {
			sub := construct(a)
			sub.GroupID = g.id
			c.AddCommand(sub)
			refuseUnknown(sub)
		}
	}
	c.AddCommand(versionCommand(a), manCommand(c))
	return c
}

// refuseUnknown makes a word that is no command of a group an error, where cobra would print help and end well.
func refuseUnknown(c *cobra.Command) {
	for _, sub := range c.Commands() {
		refuseUnknown(sub)
	}
	if !c.HasSubCommands() || c.Runnable() {
		return
	}
	c.DisableFlagsInUseLine = true
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return advise(fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath()), fmt.Sprintf("see %s --help", c.CommandPath()))
	}
}
