// Package pccs fetches collateral over HTTP: from a PCCS, the cache that a data centre runs (Intel's design guide), or from Intel's
// Provisioning Certification Service itself. Both speak PCS API version 4; they differ in how CRLs are encoded, and in where the root's is.
//
// Non-goals: nothing is verified or kept (packages collateral/pinned and collateral do), and no PCK certificate is fetched: quotes bring
// theirs. What a server says is bytes of bounded size. TLS guards the availability and privacy of what is asked, not what is answered, so
// that plain HTTP to a PCCS on the same host is no weakness.
package pccs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/safeconduct/safeconduct/attestation/collateral"
)

// errRedirect refuses a redirection.
var errRedirect = errors.New("redirected to another host or more than 3 times")

// sameHost follows redirections that stay where the operator has sent the request. Others are refused: a service does not choose whom the
// enclave talks to.
func sameHost(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme || len(via) > 3 {
		return errRedirect
	}
	return nil
}

// Close closes connections that are kept open for later requests.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Fetch implements collateral.Source. It gets one artefact after the other; they are a set only if they are signed under one chain. Errors:
// *Error, ErrKey of package collateral.
func (c *Client) Fetch(ctx context.Context, key collateral.Key) (*collateral.Collateral, error) {
	if err := key.Valid(); err != nil {
		return nil, err
	}
	out := new(collateral.Collateral)
	for _, get := range []func(context.Context, collateral.Key, *collateral.Collateral) error{c.tcbInfo, c.qeIdentity, c.pckCRL, c.rootCACRL} {
		if err := get(ctx, key, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *Client) url(path string, query url.Values) string {
	if len(query) == 0 {
		return c.base + path
	}
	return c.base + path + "?" + query.Encode()
}

func (c *Client) tcbInfo(ctx context.Context, key collateral.Key, out *collateral.Collateral) error {
	query := maps.Clone(c.generation)
	query.Set("fmspc", fmt.Sprintf("%X", key.FMSPC))
	a, err := c.get(ctx, collateral.TCBInfoFile, c.url("/tcb", query), collateral.MaxTCBInfo)
	if err != nil {
		return err
	}
	out.TCBInfo = a.body
	out.TCBSigningChain, err = a.chain(headerTCBChain)
	return err
}

func (c *Client) qeIdentity(ctx context.Context, _ collateral.Key, out *collateral.Collateral) error {
	a, err := c.get(ctx, collateral.QEIdentityFile, c.url("/qe/identity", c.generation), collateral.MaxQEIdentity)
	if err != nil {
		return err
	}
	chain, err := a.chain(headerIdentityChain)
	if err != nil {
		return err
	}
	out.QEIdentity = a.body
	if !sameChain(chain, out.TCBSigningChain) {
		// It happens while a PCCS refreshes after Intel has changed its signing certificate: the next attempt finds a set.
		return a.failed(ErrChains, errors.New("found TCB info and QE identity under different chains, expected the same"))
	}
	return nil
}

func (c *Client) pckCRL(ctx context.Context, key collateral.Key, out *collateral.Collateral) error {
	from := c.url("/pckcrl", url.Values{"ca": {string(key.CA)}, "encoding": {"der"}})
	a, err := c.get(ctx, collateral.PCKCRLFile, from, crlText(collateral.MaxPCKCRL))
	if err != nil {
		return err
	}
	if len(a.header.Values(headerCRLChain)) > 0 { // whether there must be one is for the Check to say
		if out.PCKCRLIssuerChain, err = a.chain(headerCRLChain); err != nil {
			return err
		}
	}
	out.PCKCRL, err = a.crl(collateral.MaxPCKCRL)
	return err
}

func (c *Client) rootCACRL(ctx context.Context, _ collateral.Key, out *collateral.Collateral) error {
	a, err := c.get(ctx, collateral.RootCACRLFile, c.rootCRL, crlText(collateral.MaxRootCACRL))
	if err != nil {
		return err
	}
	out.RootCACRL, err = a.crl(collateral.MaxRootCACRL)
	return err
}

// once makes one attempt.
func (c *Client) once(ctx context.Context, artefact, from string, limit int) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return nil, &Error{Artefact: artefact, URL: redact(from), Kind: ErrTransport, Err: errors.New("not a URL")}
	}
	if c.opts.APIKey != "" && strings.HasPrefix(from, c.base) {
		req.Header.Set(headerAPIKey, c.opts.APIKey)
	}
	a := &answer{artefact: artefact, url: redact(from)}
	res, err := c.http.Do(req)
	if err != nil {
		var wrapped *url.Error // it repeats the URL
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		if errors.Is(err, errRedirect) {
			return nil, a.failed(ErrRedirect, err)
		}
		return nil, a.failed(ErrTransport, err)
	}
	defer func() { _ = res.Body.Close() }()
	a.status, a.header = res.StatusCode, res.Header
	body, err := io.ReadAll(io.LimitReader(res.Body, int64(limit)+1))
	switch {
	case res.StatusCode != http.StatusOK:
		return a, a.failed(ErrStatus, errors.New(excerpt(body)))
	case err != nil:
		return nil, a.failed(ErrTransport, err)
	case len(body) > limit:
		return nil, a.failed(ErrTooLarge, fmt.Errorf("found more than %d bytes", limit))
	case len(body) == 0:
		return nil, a.failed(ErrContent, errors.New("found no content"))
	}
	a.body = body
	return a, nil
}
