package sgx

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/safeconduct/safeconduct/tee"
)

// ErrQuote means that the quoting service failed, or that what it returned is no quote of this enclave with the report data that was asked for.
var ErrQuote = errors.New("no quote")

// MaxQuoteSize bounds a quote in bytes, as package attestation/quote does. Real ones have about 5 KiB.
const MaxQuoteSize = 64 << 10

// A remote report is oe_report_header_t (version u32, report_type u32, report_size u64, little-endian), then the quote. Open Enclave SDK,
// include/openenclave/internal/report.h.
const (
	reportHeaderSize    = 16
	reportVersion       = 1
	reportTypeSGXRemote = 2
)

// Offsets in an SGX ECDSA quote, version 3. Intel SGX ECDSA Quote Library API, appendix A.4.
const (
	quoteVersion        = 3
	quoteKeyTypeP256    = 2
	quoteHeaderSize     = 48
	offsetAttributes    = quoteHeaderSize + 48
	offsetMREnclave     = quoteHeaderSize + 64
	offsetMRSigner      = quoteHeaderSize + 128
	offsetReportData    = quoteHeaderSize + 320
	offsetSignatureSize = quoteHeaderSize + 384
	quoteFixedSize      = offsetSignatureSize + 4

	attributeDebug = 2
)

// Quote implements tee.Enclave. EGo's call cannot be interrupted: when ctx ends first, Quote returns and the call's place stays taken until it
// comes back, so that a hanging quoting service never holds more than maxQuotes threads. Errors: ErrQuote, and those of ctx.
func (e *Enclave) Quote(ctx context.Context, reportData [tee.ReportDataSize]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case e.quoting <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %d are being made already: %w", ErrQuote, maxQuotes, ctx.Err())
	}
	type answer struct {
		report []byte
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-e.quoting }()
		report, err := guarded("remote report", func() ([]byte, error) { return e.hw.remoteReport(reportData) })
		done <- answer{report, err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return nil, fmt.Errorf("%w: %w; check the quoting service (AESM, SGX_AESM_ADDR), the PCCS and /dev/sgx_provision", ErrQuote, a.err)
		}
		return stripReport(a.report, e.self, reportData)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: the quoting service has not answered: %w", ErrQuote, ctx.Err())
	}
}

// stripReport returns the quote in a remote report, if it is this enclave's with this report data. The bytes come through the host. Whether
// the quote is authentic is for its verifier to say.
func stripReport(report []byte, self identity, reportData [tee.ReportDataSize]byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(report) < reportHeaderSize+quoteFixedSize || len(report) > reportHeaderSize+MaxQuoteSize {
		return nil, quoteError("size of the report", len(report), fmt.Sprintf("%d to %d", reportHeaderSize+quoteFixedSize, reportHeaderSize+MaxQuoteSize))
	}
	quote := report[reportHeaderSize:]
	if v := le.Uint32(report); v != reportVersion {
		return nil, quoteError("version of the report's header", v, reportVersion)
	}
	if v := le.Uint32(report[4:]); v != reportTypeSGXRemote {
		return nil, quoteError("type of the report", v, reportTypeSGXRemote)
	}
	if v := le.Uint64(report[8:]); v != uint64(len(quote)) {
		return nil, quoteError("size in the report's header", v, len(quote))
	}
	if v := le.Uint16(quote); v != quoteVersion {
		return nil, quoteError("version of the quote", v, quoteVersion)
	}
	if v := le.Uint16(quote[2:]); v != quoteKeyTypeP256 {
		return nil, quoteError("attestation key type", v, quoteKeyTypeP256)
	}
	if v := le.Uint32(quote[offsetSignatureSize:]); uint64(v) != uint64(len(quote)-quoteFixedSize) {
		return nil, quoteError("size of the quote's signature", v, len(quote)-quoteFixedSize)
	}
	if err := checkBody(quote, self, reportData); err != nil {
		return nil, err
	}
	return quote, nil
}

func checkBody(quote []byte, self identity, reportData [tee.ReportDataSize]byte) error {
	debug := binary.LittleEndian.Uint64(quote[offsetAttributes:])&attributeDebug != 0
	switch {
	case subtle.ConstantTimeCompare(quote[offsetReportData:][:tee.ReportDataSize], reportData[:]) != 1:
		return fmt.Errorf("%w: it does not hold the report data that was asked for", ErrQuote)
	case [32]byte(quote[offsetMREnclave:][:32]) != self.mrEnclave:
		return quoteError("MRENCLAVE", fmt.Sprintf("%x", quote[offsetMREnclave:][:32]), fmt.Sprintf("%x", self.mrEnclave))
	case [32]byte(quote[offsetMRSigner:][:32]) != self.mrSigner:
		return quoteError("MRSIGNER", fmt.Sprintf("%x", quote[offsetMRSigner:][:32]), fmt.Sprintf("%x", self.mrSigner))
	case debug != self.debug:
		return quoteError("debug attribute", debug, self.debug)
	}
	return nil
}

func quoteError(what string, found, expected any) error {
	return fmt.Errorf("%w: %s: found %v, expected %v", ErrQuote, what, found, expected)
}
