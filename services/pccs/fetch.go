package pccs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/attestation/collateral"
	"github.com/safeconduct/safeconduct/attestation/collateral/pinned"
	"github.com/safeconduct/safeconduct/attestation/dcap"
	client "github.com/safeconduct/safeconduct/attestation/pccs"
)

// fetchFlags are the flags of "pccs fetch".
type fetchFlags struct {
	url, rootCRL, out, root, caFile string
	update                          string
	keys                            []string
	timeout                         time.Duration
}

func fetchCommand() *cobra.Command {
	var f fetchFlags
	c := &cobra.Command{
		Use: "fetch --out FILE FMSPC-CA...", Short: "Fetch collateral into a bundle", Args: cobra.MinimumNArgs(1),
		Long: `Fetch collateral for kinds of platforms (such as 00606a000000-platform) into a bundle, to be carried to a site without a network.

Each set is verified as a node will verify it. FILE is replaced whole, and only if every set was fetched and verified.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.keys = args
			entries, err := f.fetch(cmd.Context(), time.Now)
			if err != nil {
				return err
			}
			for _, e := range entries {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%v: valid until %s (%s)\n", e.Key, e.until.UTC().Format(time.RFC3339), e.expires)
			}
			return f.write(entries)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.url, "url", client.IntelPCS, "base URL of a PCCS or of Intel's service")
	flags.StringVar(&f.rootCRL, "root-crl-url", "", "URL of the root's CRL, if the service does not serve it")
	flags.StringVar(&f.caFile, "tls-ca", "", "file of the CA certificates that certify the service, in PEM; the system's without")
	flags.StringVar(&f.root, "root", "", "file of the root certificate of a simulated authority, in PEM; Intel's without")
	flags.StringVar(&f.update, "update", "", "standard or early: the generation of TCB info")
	flags.StringVar(&f.out, "out", "", "bundle to write")
	flags.DurationVar(&f.timeout, "timeout", 2*time.Minute, "for all of it")
	_ = c.MarkFlagRequired("out") // the flag is there
	return c
}

// fetched is a verified set, and when it expires.
type fetched struct {
	collateral.Entry
	until   time.Time
	expires string
}

func (f fetchFlags) fetch(ctx context.Context, now func() time.Time) ([]fetched, error) {
	checker, err := f.checker()
	if err != nil {
		return nil, err
	}
	transport, err := f.http()
	if err != nil {
		return nil, err
	}
	source, err := client.New(client.Options{BaseURL: f.url, RootCRLURL: f.rootCRL, HTTP: transport, Update: client.Update(f.update)})
	if err != nil {
		return nil, err
	}
	defer source.Close()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	var out []fetched
	for _, name := range f.keys {
		key, err := collateral.ParseKey(name)
		if err != nil {
			return nil, err
		}
		c, err := source.Fetch(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", key, err)
		}
		_, validity, err := checker.Check(key, c)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", key, err)
		}
		at := now()
		if err := validity.At(at); err != nil {
			return nil, fmt.Errorf("%v: %w", key, err)
		}
		out = append(out, fetched{collateral.Entry{Key: key, Fetched: at, Collateral: c}, validity.NotAfter, validity.Expires})
	}
	return out, nil
}

func (f fetchFlags) checker() (pinned.Checker, error) {
	if f.root == "" {
		return pinned.Checker{Root: dcap.IntelRoot()}, nil
	}
	raw, err := os.ReadFile(f.root)
	if err != nil {
		return pinned.Checker{}, err
	}
	pin, err := dcap.PinPEM(raw)
	if err != nil {
		return pinned.Checker{}, fmt.Errorf("%s: %w", f.root, err)
	}
	return pinned.Checker{Root: pin}, nil
}

// errNoCA says that a file of CA certificates has none.
var errNoCA = errors.New("no certificate in PEM")

// http is the HTTP client for a service that is certified by a CA of its own; nil if there is none.
func (f fetchFlags) http() (*http.Client, error) {
	if f.caFile == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(f.caFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s: %w", f.caFile, errNoCA)
	}
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 256 << 10,
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}, nil
}

// write replaces the bundle whole.
func (f fetchFlags) write(sets []fetched) (err error) {
	entries := make([]collateral.Entry, len(sets))
	for i, s := range sets {
		entries[i] = s.Entry
	}
	temp, err := os.CreateTemp(filepath.Dir(f.out), ".tmp-bundle-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp.Name()))
		}
	}()
	if err := errors.Join(collateral.WriteBundle(temp, entries), temp.Chmod(0o644), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), f.out)
}
