package statestream

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"testing"
)

// BenchmarkStatestream seals and opens 16 MiB at several segment sizes, beside AES-256-GCM alone at the same sizes: the
// difference is what the stream costs.
func BenchmarkStatestream(b *testing.B) {
	const size = 16 << 20
	plaintext := make([]byte, size)
	for _, segment := range []int{16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10} {
		header := Header{Kind: KindImage, Direction: SourceToDestination, SegmentSize: segment}
		name := fmt.Sprintf("segment=%dK", segment>>10)
		b.Run("seal/"+name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				benchmarkSeal(b, io.Discard, header, plaintext)
			}
		})
		b.Run("open/"+name, func(b *testing.B) {
			var sealed bytes.Buffer
			benchmarkSeal(b, &sealed, header, plaintext)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				r, err := NewReader(bytes.NewReader(sealed.Bytes()), testKey, header)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != size {
					b.Fatal(n, err)
				}
			}
		})
		b.Run("gcm-seal/"+name, func(b *testing.B) { benchmarkGCM(b, plaintext, segment, false) })
		b.Run("gcm-open/"+name, func(b *testing.B) { benchmarkGCM(b, plaintext, segment, true) })
	}
}

// BenchmarkStateBlob seals and opens a blob of the size that swtpm's volatile state has: what one blob adds to a migration's
// downtime.
func BenchmarkStateBlob(b *testing.B) {
	plaintext := make([]byte, 9482)
	b.SetBytes(int64(len(plaintext)))
	for b.Loop() {
		var sealed bytes.Buffer
		benchmarkSeal(b, &sealed, testHeader, plaintext)
		if got, err := readAll(&sealed, testKey, testHeader); err != nil || len(got) != len(plaintext) {
			b.Fatal(len(got), err)
		}
	}
}

func benchmarkSeal(b *testing.B, to io.Writer, header Header, plaintext []byte) {
	b.Helper()
	w, err := NewWriter(to, testKey, header)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.Write(plaintext); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}

// benchmarkGCM is the cipher alone, with one key, nonce and buffer: records of a segment each, sealed or opened.
func benchmarkGCM(b *testing.B, plaintext []byte, segment int, open bool) {
	b.Helper()
	block, err := aes.NewCipher(testKey)
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, 12)
	var sealed []byte
	for at := 0; open && at < len(plaintext); at += segment {
		sealed = aead.Seal(sealed, nonce, plaintext[at:at+segment], nil)
	}
	out := make([]byte, 0, segment+tagSize)
	b.SetBytes(int64(len(plaintext)))
	for b.Loop() {
		for at := 0; at < len(plaintext); at += segment {
			if !open {
				aead.Seal(out, nonce, plaintext[at:at+segment], nil)
				continue
			}
			record := sealed[at/segment*(segment+tagSize):][:segment+tagSize]
			if _, err := aead.Open(out, nonce, record, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}
