package pccs

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/safeconduct/safeconduct/attestation/collateral"
)

// apiPath begins the path of every request (PCS API version 4).
const apiPath = "/sgx/certification/v4"

// Problem is the body of every refusal, in JSON.
type Problem struct {
	// Code is one of the Problem codes.
	Code string `json:"code"`
	// Message is for people.
	Message string `json:"message"`
}

// The codes of a Problem.
const (
	// CodeInvalid: a parameter is missing or malformed. Status 400.
	CodeInvalid = "invalid_request"
	// CodeNotFound: there is no such collateral, or no such resource. Status 404.
	CodeNotFound = "not_found"
	// CodeMethod: another method than GET or HEAD. Status 405.
	CodeMethod = "method_not_allowed"
	// CodeUnavailable: the collateral cannot be read. Status 503.
	CodeUnavailable = "unavailable"
)

// Handler serves what current returns at the time of a request:
//
//	GET /sgx/certification/v4/tcb?fmspc=HEX[&tcbEvaluationDataNumber=N|&update=standard|early]
//	GET /sgx/certification/v4/qe/identity[?tcbEvaluationDataNumber=N|?update=standard|early]
//	GET /sgx/certification/v4/pckcrl?ca=processor|platform[&encoding=der]    (hex without)
//	GET /sgx/certification/v4/rootcacrl                                      (hex)
//
// There is one generation of each: update is accepted and makes no difference, another number than the one there is is not found.
func Handler(current func() (*Library, error)) http.Handler {
	mux := http.NewServeMux()
	serve := func(path string, f func(*Library, url.Values) (response, *refusal)) {
		mux.HandleFunc(apiPath+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, current, f) })
	}
	serve("/tcb", tcbInfo)
	serve("/qe/identity", qeIdentity)
	serve("/pckcrl", pckCRL)
	serve("/rootcacrl", rootCACRL)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		(&refusal{http.StatusNotFound, CodeNotFound, "no such resource"}).write(w)
	})
	return mux
}

// Fixed is a Library that does not change, for Handler.
func Fixed(l *Library) func() (*Library, error) {
	return func() (*Library, error) { return l, nil }
}

type response struct {
	contentType, header string
	chain, body         []byte
}

type refusal struct {
	status        int
	code, message string
}

func (r *refusal) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	_ = json.NewEncoder(w).Encode(Problem{r.code, r.message}) // nobody is left to tell
}

func answer(w http.ResponseWriter, r *http.Request, current func() (*Library, error), f func(*Library, url.Values) (response, *refusal)) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		(&refusal{http.StatusMethodNotAllowed, CodeMethod, "only GET and HEAD"}).write(w)
		return
	}
	library, err := current()
	if err != nil {
		(&refusal{http.StatusServiceUnavailable, CodeUnavailable, "the collateral cannot be read; the log says why"}).write(w)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		invalid("malformed query").write(w)
		return
	}
	for name, values := range query {
		if len(values) > 1 {
			invalid(fmt.Sprintf("parameter %.40q comes %d times", name, len(values))).write(w)
			return
		}
	}
	out, refused := f(library, query)
	if refused != nil {
		refused.write(w)
		return
	}
	w.Header().Set("Content-Type", out.contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(out.body)))
	if len(out.chain) > 0 {
		w.Header().Set(out.header, escape(out.chain))
	}
	_, _ = w.Write(out.body)
}

// escape is percent-encoding of everything that any client might take for something else: blanks as %20, plus signs as %2B, as Intel does.
func escape(chain []byte) string {
	return strings.ReplaceAll(url.QueryEscape(string(chain)), "+", "%20")
}

func invalid(message string) *refusal {
	return &refusal{http.StatusBadRequest, CodeInvalid, message}
}

func notFound(message string) *refusal {
	return &refusal{http.StatusNotFound, CodeNotFound, message}
}

// generation checks the parameters that choose a generation.
func generation(p part, query url.Values) *refusal {
	number, update := query.Get("tcbEvaluationDataNumber"), query.Get("update")
	switch {
	case number != "" && update != "":
		return invalid("tcbEvaluationDataNumber and update exclude each other")
	case update != "" && !strings.EqualFold(update, "standard") && !strings.EqualFold(update, "early"):
		return invalid("update is standard or early")
	case number == "":
		return nil
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return invalid("tcbEvaluationDataNumber is a number")
	}
	if n != p.number {
		return notFound(fmt.Sprintf("no generation %d: there is %d", n, p.number))
	}
	return nil
}

func tcbInfo(l *Library, query url.Values) (response, *refusal) {
	raw, err := hex.DecodeString(query.Get("fmspc"))
	if err != nil || len(raw) != 6 {
		return response{}, invalid("fmspc is 12 hex digits")
	}
	p, ok := l.tcb[[6]byte(raw)]
	if !ok {
		return response{}, notFound(fmt.Sprintf("no TCB info for FMSPC %x", raw))
	}
	return response{"application/json", "TCB-Info-Issuer-Chain", p.chain, p.body}, generation(p, query)
}

func qeIdentity(l *Library, query url.Values) (response, *refusal) {
	p := l.identity
	return response{"application/json", "SGX-Enclave-Identity-Issuer-Chain", p.chain, p.body}, generation(p, query)
}

func pckCRL(l *Library, query url.Values) (response, *refusal) {
	ca := collateral.CA(strings.ToLower(query.Get("ca")))
	if (collateral.Key{CA: ca}).Valid() != nil {
		return response{}, invalid("ca is processor or platform")
	}
	p, ok := l.crl[ca]
	if !ok {
		return response{}, notFound(fmt.Sprintf("no PCK CRL of the %s CA", ca))
	}
	body := p.body
	if !strings.EqualFold(query.Get("encoding"), "der") {
		body = hex.AppendEncode(nil, p.body)
	}
	return response{"application/pkix-crl", "SGX-PCK-CRL-Issuer-Chain", p.chain, body}, nil
}

func rootCACRL(l *Library, _ url.Values) (response, *refusal) {
	return response{contentType: "application/pkix-crl", body: hex.AppendEncode(nil, l.rootCRL.body)}, nil
}
