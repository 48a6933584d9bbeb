package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/quote"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// nonceSize of evidence that is asked for here, in bytes: nobody guesses or repeats it.
const nonceSize = 32

// attestOptions say whose evidence is judged.
type attestOptions struct {
	peer, host      string
	ca, certificate string
	key             string
	quoteOut        string
}

func attestCommand(a *app) *cobra.Command {
	var o attestOptions
	c := &cobra.Command{
		Use: "attest [--peer HOST:PORT]", Short: "Judge the evidence of this node, or of another", Args: cobra.NoArgs,
		Long: `Judge the evidence of this node, or of another: is its quote authentic, fresh, and accepted by this node's policy?

Evidence is asked for with a fresh nonce, of this node's service, or of the peer port of another node; this node's service judges it
either way. Nothing is changed. The platform integrity of the host is not part of it: that takes the whole handshake, see preflight.`,
		Example: `  safeconduct attest
  safeconduct attest --peer compute2.example:7443 --host compute2 -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.attest(cmd.Context(), &o)
			if err != nil {
				return err
			}
			return r.conclude(a.show(r, r.print))
		},
	}
	f := c.Flags()
	f.StringVar(&o.peer, "peer", "", "peer port of the node whose evidence is judged; this node without")
	f.StringVar(&o.host, "host", "", "host that the evidence must be of, by its enrolment; the one it names itself without")
	f.StringVar(&o.ca, "tls-ca", "", "certificates in PEM under which the peer's is accepted, where the peer port has TLS")
	f.StringVar(&o.certificate, "tls-certificate", "", "certificate in PEM to show to the peer")
	f.StringVar(&o.key, "tls-key", "", "key of that certificate, in PEM")
	f.StringVar(&o.quoteOut, "save-quote", "", "also write the quote to this new file")
	c.MarkFlagsRequiredTogether("tls-ca", "tls-certificate", "tls-key")
	return c
}

// attestReport is what attest prints.
type attestReport struct {
	verdict
	Host     string        `json:"host"`
	From     string        `json:"from"`
	Nonce    string        `json:"nonce"`
	Attested *attestedView `json:"attested,omitempty"`
	EAR      *ear          `json:"ear"`
}

func (a *app) attest(ctx context.Context, o *attestOptions) (*attestReport, error) {
	nonce := make([]byte, nonceSize)
	if _, err := io.ReadFull(a.Rand, nonce); err != nil {
		return nil, err
	}
	evidence, from, err := a.evidence(ctx, o, nonce)
	if err != nil {
		return nil, err
	}
	if len(evidence.GetQuote()) > quote.MaxSize {
		return nil, refusal.New(v1.Reason_REASON_QUOTE_INVALID, "%s sent %d bytes of evidence, more than %d", from, len(evidence.GetQuote()),
			quote.MaxSize)
	}
	if o.quoteOut != "" {
		if err := a.writeNew(o.quoteOut, 0o644, evidence.GetQuote()); err != nil {
			return nil, err
		}
	}
	host := orElse(o.host, evidence.GetHost())
	answer, err := ask(ctx, a, func(ctx context.Context, c *grpc.ClientConn) (*v1.AppraiseResponse, error) {
		return v1.NewAttestationServiceClient(c).Appraise(ctx, &v1.AppraiseRequest{Quote: evidence.GetQuote(), Nonce: nonce, Host: host})
	})
	if err != nil {
		return nil, err
	}
	return a.attestReport(evidence, answer, host, from, nonce), nil
}

func (a *app) attestReport(evidence *v1.GetEvidenceResponse, answer *v1.AppraiseResponse, host, from string, nonce []byte) *attestReport {
	attested := answer.GetAttested()
	word := refused
	switch {
	case attested == nil:
		word = notAuthentic
	case answer.GetAccepted() && len(answer.GetRefusals()) == 0:
		word = accepted
	}
	// The verifier's mode counts; what the other side says of itself is all there is when nothing was verified.
	mode := evidence.GetMode()
	if attested != nil {
		mode = attested.GetMode()
	}
	checks := evidenceChecks(attested, answer.GetRefusals(), asked{binding: true, host: host})
	r := &attestReport{verdict: newVerdict(mode, word, checks), Host: host, From: from, Nonce: hexOf(nonce), Attested: viewAttested(attested)}
	r.EAR = newEAR(a.Now(), nodeBuild, orElse(host, "node"), appraisalOf(&r.verdict, attested, "")).withNonce(nonce).until(attested)
	return r
}

// evidence asks this node, or the peer port of another, for evidence over the nonce.
func (a *app) evidence(ctx context.Context, o *attestOptions, nonce []byte) (*v1.GetEvidenceResponse, string, error) {
	get := func(ctx context.Context, c *grpc.ClientConn) (*v1.GetEvidenceResponse, error) {
		return v1.NewAttestationServiceClient(c).GetEvidence(ctx, &v1.GetEvidenceRequest{Nonce: nonce})
	}
	if o.peer == "" {
		e, err := ask(ctx, a, get)
		return e, "this node", err
	}
	creds, err := peerTLS(o)
	if err != nil {
		return nil, "", err
	}
	target := o.peer
	if !strings.HasPrefix(target, "unix:") {
		target = "passthrough:///" + target
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, "", advise(fmt.Errorf("--peer %s: %w", o.peer, err), "give the address of the peer port as HOST:PORT")
	}
	defer conn.Close() //nolint:errcheck // nothing was buffered
	ctx, cancel := a.limit(ctx)
	defer cancel()
	e, err := get(ctx, conn)
	if _, typed := rpcerror.Typed(err); err != nil && !typed {
		err = &failure{err: fmt.Errorf("peer %s does not give evidence: %w", o.peer, err), code: ExitUnreachable,
			do: "check that safeconductd runs there, that its peer port is reachable from here, and whether it has TLS (--tls-ca)"}
	}
	return e, o.peer, err
}

func peerTLS(o *attestOptions) (credentials.TransportCredentials, error) {
	if o.ca == "" {
		return insecure.NewCredentials(), nil // the quote proves itself
	}
	cert, err := tls.LoadX509KeyPair(o.certificate, o.key)
	if err != nil {
		return nil, advise(fmt.Errorf("--tls-certificate and --tls-key: %w", err),
			"give the pair that peer.tls names in safeconductd's configuration")
	}
	pem, err := readFile(o.ca, maxKeyFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, advise(errors.New("--tls-ca holds no certificate"), "give the ca that peer.tls names in safeconductd's configuration")
	}
	return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13}), nil
}

// print is the report for people.
func (r *attestReport) print(s *sheet) {
	r.head(s)
	s.field("host", r.Host)
	s.field("evidence of", r.From)
	r.list(s)
}
