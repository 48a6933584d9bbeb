package openstack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	goopenstack "github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"
)

const (
	// maxReply bounds one reply of an OpenStack service, in bytes: some ten thousand migrations.
	maxReply = 16 << 20
	// maxSecret bounds a file that holds a secret.
	maxSecret = 64 << 10

	// Microversions. Placement 1.39 is that of 2022 (Debian 12); the queries in use need no more than 1.18. Nova 2.59 has the UUIDs of migrations.
	placementVersion = "1.39"
	computeVersion   = "2.59"
)

// Cloud is OpenStack as the agent sees it. Nothing is asked before the first call, and a service that is down is asked again by the next one.
type Cloud struct {
	cfg       OpenStack
	transport *http.Transport

	mu       sync.Mutex
	provider *gophercloud.ProviderClient // nil until Keystone has accepted the credentials
	endpoint gophercloud.EndpointOpts
	services map[Service]*gophercloud.ServiceClient // each costs a request to find: kept with the provider
}

// NewCloud prepares access to the cloud.
func NewCloud(cfg OpenStack) *Cloud {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 8, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	return &Cloud{cfg: cfg, transport: t}
}

// Close closes the connections that are kept.
func (c *Cloud) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.transport.CloseIdleConnections()
	c.provider, c.services = nil, nil
}

// Check reads the credentials as the first call would, and asks nobody.
func (c *Cloud) Check() error {
	_, _, _, err := c.credentials()
	return err
}

// credentials reads the files.
func (c *Cloud) credentials() (gophercloud.AuthOptions, gophercloud.EndpointOpts, *tls.Config, error) {
	read := c.readClouds
	if c.cfg.Clouds == nil {
		read = c.readApplicationCredential
	}
	auth, endpoint, secure, err := read()
	if err != nil {
		return auth, endpoint, nil, fmt.Errorf("credentials: %w", err)
	}
	if secure == nil {
		secure = new(tls.Config)
	}
	if secure.InsecureSkipVerify {
		return auth, endpoint, nil, errors.New("credentials: verify is false, which would give the token to whoever answers: give the CA as cacert")
	}
	secure.MinVersion = tls.VersionTLS12
	auth.AllowReauth = true // Parse leaves it false: the agent would stop when its first token expires
	return auth, endpoint, secure, nil
}

func (c *Cloud) readClouds() (gophercloud.AuthOptions, gophercloud.EndpointOpts, *tls.Config, error) {
	// The file is read here for its size; the library looks for secure.yaml beside it.
	if _, err := readFile(c.cfg.Clouds.File, maxConfig); err != nil {
		return gophercloud.AuthOptions{}, gophercloud.EndpointOpts{}, nil, err
	}
	auth, endpoint, secure, err := clouds.Parse(clouds.WithLocations(c.cfg.Clouds.File), clouds.WithCloudName(c.cfg.Clouds.Cloud))
	if err != nil {
		return auth, endpoint, nil, fmt.Errorf("%s, cloud %q: %w", c.cfg.Clouds.File, c.cfg.Clouds.Cloud, err)
	}
	if !isURL(auth.IdentityEndpoint) {
		return auth, endpoint, nil, fmt.Errorf("%s, cloud %q: auth_url is %q, expected a URL", c.cfg.Clouds.File, c.cfg.Clouds.Cloud, auth.IdentityEndpoint)
	}
	return auth, endpoint, secure, nil
}

func (c *Cloud) readApplicationCredential() (gophercloud.AuthOptions, gophercloud.EndpointOpts, *tls.Config, error) {
	a := c.cfg.ApplicationCredential
	secret, err := readFile(a.SecretFile, maxSecret)
	if err != nil {
		return gophercloud.AuthOptions{}, gophercloud.EndpointOpts{}, nil, err
	}
	text := strings.TrimSpace(string(secret))
	if text == "" {
		return gophercloud.AuthOptions{}, gophercloud.EndpointOpts{}, nil, fmt.Errorf("%s is empty", a.SecretFile)
	}
	secure := new(tls.Config)
	if a.CA != "" {
		pem, err := readFile(a.CA, maxConfig)
		if err != nil {
			return gophercloud.AuthOptions{}, gophercloud.EndpointOpts{}, nil, err
		}
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(pem) {
			return gophercloud.AuthOptions{}, gophercloud.EndpointOpts{}, nil, fmt.Errorf("%s holds no certificate in PEM", a.CA)
		}
	}
	availability := gophercloud.AvailabilityPublic
	switch a.Interface {
	case "internal":
		availability = gophercloud.AvailabilityInternal
	case "admin":
		availability = gophercloud.AvailabilityAdmin
	}
	return gophercloud.AuthOptions{IdentityEndpoint: a.AuthURL, ApplicationCredentialID: a.ID, ApplicationCredentialSecret: text},
		gophercloud.EndpointOpts{Region: a.Region, Availability: availability}, secure, nil
}

// Service is an OpenStack service, by its part in metrics.
type Service string

// The services.
const (
	Identity  Service = "identity"
	Placement Service = "placement"
	Compute   Service = "compute"
)

// CloudError is a call to OpenStack that failed.
type CloudError struct {
	Service Service
	// Doing is what was to be done.
	Doing string
	Err   error
}

func (e *CloudError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Service, e.Doing, e.Err) }

// Unwrap returns the cause.
func (e *CloudError) Unwrap() error { return e.Err }

// Kinds of a CloudError.
const (
	kindUnavailable = "unavailable"
	kindDenied      = "denied"
	kindConflict    = "conflict"
	kindOther       = "other"
)

// Kind says in one word what to look at.
func (e *CloudError) Kind() string {
	switch code := statusOf(e.Err); {
	case isNoProvider(e.Err):
		return kindOther
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return kindDenied
	case code == http.StatusConflict:
		return kindConflict
	case code == 0 || code >= 500 || code == http.StatusTooManyRequests:
		return kindUnavailable
	default:
		return kindOther
	}
}

// Remedy says what to do about it.
func (e *CloudError) Remedy() string {
	switch e.Kind() {
	case kindDenied:
		return "look at the credentials: they may have expired, lack the role, or their access rules may not name this path (docs/agent.md)"
	case kindUnavailable:
		return "see that the service answers at its endpoint in Keystone's catalogue; the agent tries again by itself"
	case kindConflict:
		return "somebody else changes the same resource provider; the agent tries again by itself"
	default:
		return "compare the agent's configuration with the cloud (docs/agent.md)"
	}
}

// statusOf is the HTTP status of an error of the library; 0 if there was no answer.
func statusOf(err error) int {
	if e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); ok {
		return e.Actual
	}
	if again, ok := errors.AsType[*gophercloud.ErrUnableToReauthenticate](err); ok {
		return statusOf(again.ErrReauth)
	}
	if after, ok := errors.AsType[*gophercloud.ErrErrorAfterReauthentication](err); ok && after.ErrOriginal != nil {
		return statusOf(after.ErrOriginal)
	}
	return 0
}

// connect returns the client of a service; it asks Keystone for a token if there is none.
func (c *Cloud) connect(ctx context.Context, service Service) (*gophercloud.ServiceClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.provider == nil {
		if err := c.authenticate(ctx); err != nil {
			return nil, err
		}
	}
	if client := c.services[service]; client != nil {
		return client, nil
	}
	find, version := goopenstack.NewComputeV2, computeVersion
	if service == Placement {
		find, version = goopenstack.NewPlacementV1, placementVersion
	}
	client, err := find(c.provider, c.endpoint)
	if err != nil {
		if _, missing := errors.AsType[*gophercloud.ErrEndpointNotFound](err); missing {
			c.provider, c.services = nil, nil // the catalogue came with the token
		}
		return nil, &CloudError{service, "find its endpoint", err}
	}
	client.Microversion = version
	c.services[service] = client
	return client, nil
}

// authenticate asks Keystone, with credentials as the files have them now. Under c.mu.
func (c *Cloud) authenticate(ctx context.Context) error {
	auth, endpoint, secure, err := c.credentials()
	if err != nil {
		return err
	}
	c.transport.CloseIdleConnections()
	c.transport = c.transport.Clone()
	c.transport.TLSClientConfig = secure
	p, err := goopenstack.NewClient(auth.IdentityEndpoint)
	if err != nil {
		return &CloudError{Identity, "connect to " + auth.IdentityEndpoint, err}
	}
	p.HTTPClient = http.Client{
		Transport: bounded{c.transport}, Timeout: c.cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token goes nowhere else
	}
	p.UseTokenLock() // calls of several goroutines may find that the token has expired
	p.UserAgent.Prepend("safeconduct-agent")
	if err := goopenstack.Authenticate(ctx, p, auth); err != nil {
		return &CloudError{Identity, "authenticate at " + auth.IdentityEndpoint, err}
	}
	c.provider, c.endpoint, c.services = p, endpoint, map[Service]*gophercloud.ServiceClient{}
	return nil
}

// call does something with a service. Credentials that are refused are read again by the next call: they may have been changed.
func (c *Cloud) call(ctx context.Context, service Service, doing string, do func(*gophercloud.ServiceClient) error) error {
	client, err := c.connect(ctx, service)
	if err == nil {
		if err = do(client); err != nil {
			// gophercloud's texts hold URL, status and body of the reply, never the token or the credentials.
			err = &CloudError{service, doing, err}
		}
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	if e, ok := errors.AsType[*CloudError](err); ok && e.Kind() == kindDenied && client != nil {
		c.forget(client.ProviderClient)
	}
	return err
}

func (c *Cloud) forget(p *gophercloud.ProviderClient) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.provider == p {
		c.provider, c.services = nil, nil
	}
}

// bounded is a transport whose replies end with an error if they are too long.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err == nil {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxReply}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("a reply of more than %d bytes", maxReply)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
