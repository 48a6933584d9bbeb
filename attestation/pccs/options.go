package pccs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Intel's own service, and where the root's CRL is that it does not serve.
const (
	IntelPCS        = "https://api.trustedservices.intel.com"
	IntelRootCRLURL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
)

// apiPath begins the path of every request. A base URL may end in it, as those of Intel's own configuration files do.
const apiPath = "/sgx/certification/v4"

// The headers of the answers that carry the issuers' certificates, in PEM, percent-encoded.
const (
	headerTCBChain      = "TCB-Info-Issuer-Chain"
	headerIdentityChain = "SGX-Enclave-Identity-Issuer-Chain"
	headerCRLChain      = "SGX-PCK-CRL-Issuer-Chain"
	headerAPIKey        = "Ocp-Apim-Subscription-Key" //nolint:gosec // the name of a header
)

// Update chooses between the two generations of TCB info that Intel publishes at a time.
type Update string

// The updates. Early is published months before Standard, which platforms are expected to have reached.
const (
	Standard Update = "standard"
	Early    Update = "early"
)

// Options of a Client. Only BaseURL must be set.
type Options struct {
	// BaseURL of the service, such as https://pccs.example:8081 or IntelPCS, http or https.
	BaseURL string
	// RootCRLURL is where the root's CRL is, in DER, hex or PEM; empty means the PCCS's own, or IntelRootCRLURL if BaseURL is IntelPCS.
	RootCRLURL string
	// HTTP is used for its transport and timeout, and never changed; nil means one with the proxy of the environment. A CA pool for the
	// PCCS's own certificate belongs into its TLS configuration.
	HTTP *http.Client
	// APIKey is sent as Intel's subscription key, if set.
	APIKey string
	// EvaluationDataNumber, if not zero, asks for one generation of TCB info and QE identity by its number. Intel's service knows it; Intel's
	// PCCS ignores it, and whoever needs a number checks the answer. It excludes Update.
	EvaluationDataNumber uint32
	// Update; empty leaves the choice to the service, which is Standard.
	Update Update
	// Attempts for each request; zero means 4.
	Attempts int
	// Pause after the first failed attempt, which doubles each time, and MaxPause, the longest, whatever the server asks for in Retry-After;
	// zero means half a second and 20 seconds.
	Pause, MaxPause time.Duration
	// Rand spreads the pauses: a number in [0, 1); nil means math/rand/v2's.
	Rand func() float64
}

// Client fetches collateral. It is a collateral.Source, and safe for concurrent use.
type Client struct {
	base, rootCRL string
	// generation is the part of the query that chooses one of TCB info and QE identity.
	generation url.Values
	http       *http.Client
	opts       Options
}

// ErrOptions says what is wrong with the options of a Client.
var ErrOptions = errors.New("collateral service")

// New makes a client. Error: ErrOptions.
func New(opts Options) (*Client, error) {
	base, err := parseURL("base URL", opts.BaseURL)
	if err != nil {
		return nil, err
	}
	if base.RawQuery != "" {
		return nil, fmt.Errorf("%w: base URL: found a query, expected none", ErrOptions)
	}
	base.Path = strings.TrimSuffix(strings.TrimRight(base.Path, "/"), apiPath)
	c := &Client{base: base.String() + apiPath, generation: url.Values{}, opts: opts}
	switch {
	case opts.EvaluationDataNumber != 0 && opts.Update != "":
		return nil, fmt.Errorf("%w: found an evaluation data number and an update, expected one of them", ErrOptions)
	case opts.Update != "" && opts.Update != Standard && opts.Update != Early:
		return nil, fmt.Errorf("%w: found update %.40q, expected %q or %q", ErrOptions, string(opts.Update), string(Standard), string(Early))
	case opts.EvaluationDataNumber != 0:
		c.generation.Set("tcbEvaluationDataNumber", strconv.FormatUint(uint64(opts.EvaluationDataNumber), 10))
	case opts.Update != "":
		c.generation.Set("update", string(opts.Update))
	}
	switch c.rootCRL = opts.RootCRLURL; {
	case c.rootCRL != "":
		if _, err := parseURL("root CRL URL", c.rootCRL); err != nil {
			return nil, err
		}
	case base.Scheme+"://"+base.Host == IntelPCS:
		c.rootCRL = IntelRootCRLURL
	default:
		c.rootCRL = c.base + "/rootcacrl"
	}
	c.setDefaults()
	return c, nil
}

func parseURL(name, raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: not a URL", ErrOptions, name) // the error would show a password
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%w: %s: found %.200q, expected http or https, a host, no user and no fragment", ErrOptions, name, u.Redacted())
	}
	return u, nil
}

func (c *Client) setDefaults() {
	if c.opts.Attempts <= 0 {
		c.opts.Attempts = 4
	}
	if c.opts.Pause <= 0 {
		c.opts.Pause = 500 * time.Millisecond
	}
	if c.opts.MaxPause <= 0 {
		c.opts.MaxPause = 20 * time.Second
	}
	if c.opts.Rand == nil {
		c.opts.Rand = rand.Float64
	}
	client := new(http.Client)
	if c.opts.HTTP != nil {
		*client = *c.opts.HTTP
	} else {
		transport := &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 30 * time.Second,
			MaxIdleConns: 4, MaxConnsPerHost: 8, MaxResponseHeaderBytes: 256 << 10,
		}
		client.Transport = transport
	}
	client.CheckRedirect = sameHost
	client.Jar = nil
	c.http = client
}
