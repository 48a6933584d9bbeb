package ima

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // only its size
	"encoding/binary"
	"fmt"
	"strings"
)

// field is the identifier of a template's field (Documentation/security/IMA-templates.rst).
type field string

const (
	fieldLegacyDigest field = "d"        // 20 bytes, without a length
	fieldLegacyName   field = "n"        // padded with NUL to legacyNameSize
	fieldDigest       field = "d-ng"     // "alg:", NUL, digest
	fieldTypedDigest  field = "d-ngv2"   // "type:alg:", NUL, digest
	fieldName         field = "n-ng"     // path, NUL
	fieldSignature    field = "sig"      // security.ima
	fieldBuffer       field = "buf"      //
	fieldModuleDigest field = "d-modsig" // as d-ng, or empty
	fieldModuleSig    field = "modsig"   // PKCS #7
)

// legacyNameSize is IMA_EVENT_NAME_LEN_MAX + 1, in bytes: what is hashed of a name in the template "ima".
const legacyNameSize = 256

// legacyTemplate is the only template whose fields are hashed without their lengths.
const legacyTemplate = "ima"

// maxFields is the kernel's TEMPLATE_NUM_FIELDS_MAX.
const maxFields = 15

// layout returns the fields of a template, or nothing for one that is not known. The name may be a format, as the boot parameter
// ima_template_fmt sets it.
func layout(template string) []field {
	switch template {
	case legacyTemplate:
		return []field{fieldLegacyDigest, fieldLegacyName}
	case "ima-ng":
		return []field{fieldDigest, fieldName}
	case "ima-sig":
		return []field{fieldDigest, fieldName, fieldSignature}
	case "ima-buf":
		return []field{fieldDigest, fieldName, fieldBuffer}
	case "ima-ngv2":
		return []field{fieldTypedDigest, fieldName}
	case "ima-sigv2":
		return []field{fieldTypedDigest, fieldName, fieldSignature}
	case "ima-modsig":
		return []field{fieldDigest, fieldName, fieldSignature, fieldModuleDigest, fieldModuleSig}
	}
	var fields []field
	seen := map[field]bool{}
	for id := range strings.SplitSeq(template, "|") {
		f := field(id)
		switch f {
		case fieldDigest, fieldTypedDigest, fieldName, fieldSignature, fieldBuffer, fieldModuleDigest, fieldModuleSig:
		default:
			return nil
		}
		if seen[f] || len(fields) == maxFields {
			return nil // a field twice has no place in an Entry
		}
		seen[f] = true
		fields = append(fields, f)
	}
	if seen[fieldDigest] && seen[fieldTypedDigest] {
		return nil
	}
	return fields
}

// malformed is a decoding error, to be completed with the number of the entry.
func malformed(expected, found string, args ...any) *Error {
	return &Error{Check: CheckStructure, Found: fmt.Sprintf(found, args...), Expected: expected}
}

// decode fills the entry's fields from its template data.
func (e *Entry) decode(fields []field) *Error {
	if e.Template == legacyTemplate {
		return e.decodeLegacy()
	}
	rest := e.Data
	for _, f := range fields {
		if len(rest) < 4 {
			return malformed("the length of the field "+string(f), "%d bytes of template data left", len(rest))
		}
		n := binary.LittleEndian.Uint32(rest)
		if rest = rest[4:]; uint64(n) > uint64(len(rest)) {
			return malformed(fmt.Sprintf("at most %d", len(rest)), "a field %s of %d bytes", f, n)
		}
		if err := e.decodeField(f, rest[:n:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return malformed("nothing", "%d bytes after the last field", len(rest))
	}
	return nil
}

func (e *Entry) decodeField(f field, value []byte) (err *Error) {
	switch f {
	case fieldDigest:
		e.DigestAlgorithm, e.Digest, err = decodeDigest(value)
	case fieldTypedDigest:
		kind, value, ok := bytes.Cut(value, []byte(":"))
		switch {
		case !ok || string(kind) != "ima" && string(kind) != "verity":
			return malformed("\"ima:\" or \"verity:\"", "digest type %.20q", kind)
		case string(kind) == "ima":
			e.DigestType = "ima"
		default:
			e.DigestType = "verity"
		}
		e.DigestAlgorithm, e.Digest, err = decodeDigest(value)
	case fieldName:
		if n := bytes.IndexByte(value, 0); n != len(value)-1 || n < 0 {
			return malformed("a path that ends with NUL", "%.80q", value)
		}
		e.Path = string(value[:len(value)-1])
	case fieldSignature:
		e.Signature = value
	case fieldBuffer:
		e.Buffer = value
	case fieldModuleDigest:
		if len(value) > 0 {
			e.ModuleDigestAlgorithm, e.ModuleDigest, err = decodeDigest(value)
		}
	case fieldModuleSig:
		e.ModuleSignature = value
	default: // the legacy fields, which decodeLegacy reads
	}
	return err
}

// decodeDigest reads "alg:", NUL, digest.
func decodeDigest(value []byte) (string, []byte, *Error) {
	name, digest, ok := bytes.Cut(value, []byte(":\x00"))
	if !ok {
		return "", nil, malformed("an algorithm, ':', NUL and a digest", "digest field %.80q", value)
	}
	algorithm, size := algorithmOf(name)
	if len(digest) != size || size == 0 {
		return "", nil, malformed("an algorithm of the kernel and a digest of its size", "%d bytes of %.20q", len(digest), name)
	}
	return algorithm, digest, nil
}

// algorithmOf returns the name and the size in bytes of a digest that the kernel knows (crypto/hash_info.c), or size 0.
func algorithmOf(name []byte) (string, int) {
	switch string(name) {
	case "md5":
		return "md5", 16
	case "sha1":
		return "sha1", 20
	case "rmd160":
		return "rmd160", 20
	case "sha224":
		return "sha224", 28
	case "sha256":
		return "sha256", 32
	case "sha384":
		return "sha384", 48
	case "sha512":
		return "sha512", 64
	case "wp512":
		return "wp512", 64
	case "sm3":
		return "sm3", 32
	case "streebog256":
		return "streebog256", 32
	case "streebog512":
		return "streebog512", 64
	case "sha3-256":
		return "sha3-256", 32
	case "sha3-384":
		return "sha3-384", 48
	case "sha3-512":
		return "sha3-512", 64
	default:
		return "", 0
	}
}

// decodeLegacy reads the data of the template "ima": digest and padded name.
func (e *Entry) decodeLegacy() *Error {
	e.DigestAlgorithm, e.Digest = "sha1", e.Data[:sha1.Size:sha1.Size]
	name, padding, ok := bytes.Cut(e.Data[sha1.Size:], []byte{0})
	if !ok || len(bytes.Trim(padding, "\x00")) != 0 {
		return malformed("a name of at most 255 bytes, padded with NUL", "%.80q", e.Data[sha1.Size:])
	}
	e.Path = string(name)
	return nil
}

// appendLegacy makes the data of the template "ima".
func appendLegacy(data, digest, name []byte) ([]byte, *Error) {
	if len(digest) != sha1.Size || len(name) >= legacyNameSize || bytes.IndexByte(name, 0) >= 0 {
		return nil, malformed(fmt.Sprintf("a digest of %d and a name of less than %d", sha1.Size, legacyNameSize),
			"a digest of %d bytes and a name of %d", len(digest), len(name))
	}
	data = append(append(data, digest...), name...)
	return append(data, make([]byte, legacyNameSize-len(name))...), nil
}
