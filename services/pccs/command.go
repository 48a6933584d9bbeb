package pccs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Bounds of the server's patience. Requests are small, and so are the answers.
const (
	readTimeout     = 5 * time.Second
	writeTimeout    = 20 * time.Second
	idleTimeout     = 30 * time.Second
	shutdownTimeout = 5 * time.Second
	maxHeader       = 16 << 10
)

// Command is the command group "pccs".
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "pccs",
		Short: "Serve collateral from files, and fetch it into files",
		Long: `Serve collateral from files, and fetch it into files.

For tests, for the simulated mode, and for sites without a way to Intel: "fetch" runs where there is one, "serve" where there is none.`,
	}
	c.AddCommand(serveCommand(), fetchCommand())
	return c
}

// serveFlags are the flags of "pccs serve".
type serveFlags struct {
	listen, dir, bundle string
	certificate, key    string
}

func serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use: "serve (--dir DIR | --bundle FILE)", Short: "Serve collateral as a PCCS does", Args: cobra.NoArgs,
		Long: `Serve collateral as a PCCS does (Intel's PCS API, version 4), until SIGINT or SIGTERM.

DIR holds one set, or one directory FMSPC-CA for each (such as 00606a000000-platform), with the files tcb_info.json, qe_identity.json,
tcb_signing_chain.pem, pck_crl.der, root_ca_crl.der and, if there is one, pck_crl_issuer_chain.pem. FILE is a bundle that "fetch" made.
Both are read anew every 10 seconds. Nothing is verified: whoever asks does that.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return f.serve(ctx, log, func(addr net.Addr) {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "listening on %v\n", addr)
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8081", "address to listen on")
	flags.StringVar(&f.dir, "dir", "", "directory of collateral")
	flags.StringVar(&f.bundle, "bundle", "", "bundle of collateral")
	flags.StringVar(&f.certificate, "tls-certificate", "", "file of the certificate chain, in PEM; plain HTTP without")
	flags.StringVar(&f.key, "tls-key", "", "file of the certificate's key, in PEM")
	c.MarkFlagsOneRequired("dir", "bundle")
	c.MarkFlagsMutuallyExclusive("dir", "bundle")
	c.MarkFlagsRequiredTogether("tls-certificate", "tls-key")
	return c
}

func (f serveFlags) load() (*Library, error) {
	if f.dir != "" {
		return LoadDir(f.dir)
	}
	return LoadBundle(f.bundle)
}

// serve serves until ctx ends, and tells ready where it listens.
func (f serveFlags) serve(ctx context.Context, log *slog.Logger, ready func(net.Addr)) error {
	library := &Reloading{Load: f.load, Log: log}
	first, err := library.Current() // what cannot be served at all is an error at once
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: Handler(library.Current), ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	log.Info("serving collateral", "address", listener.Addr().String(), "fmspcs", first.FMSPCs())
	done := make(chan error, 1)
	go func() {
		if f.certificate != "" {
			done <- server.ServeTLS(listener, f.certificate, f.key)
			return
		}
		done <- server.Serve(listener)
	}()
	ready(listener.Addr())
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err = server.Shutdown(patience)
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
