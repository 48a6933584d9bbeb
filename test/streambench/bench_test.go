// Package streambench measures crypto/statestream beside AES-256-GCM alone and beside github.com/minio/sio (DARE 2.0, AES-256-GCM).
//
// Each round runs all of them one after the other on the same data, and what is reported is the median over the rounds: on a machine that
// others use too, only what ran at the same time can be compared.
//
//	go test -run '^$' -bench . -benchtime 100x
package streambench

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/minio/sio"

	"github.com/safeconduct/safeconduct/crypto/statestream"
)

// size of the data of a round, in bytes: more than the caches hold.
const size = 32 << 20

var segments = []int{4 << 10, 16 << 10, 64 << 10, 256 << 10}

type subject struct {
	name string
	run  func() error
}

// race runs the subjects in turn, b.N rounds of it, and reports for each the median throughput in MB/s (10^6), and for each but the first the
// median of its throughput as a percentage of the first one's in the same round.
func race(b *testing.B, subjects []subject) {
	times := make([][]time.Duration, len(subjects))
	for round := 0; b.Loop(); round++ {
		for i := range subjects {
			j := (i + round) % len(subjects) // each goes first as often
			begun := time.Now()
			if err := subjects[j].run(); err != nil {
				b.Fatal(subjects[j].name, err)
			}
			times[j] = append(times[j], time.Since(begun))
		}
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	for i, s := range subjects {
		var throughput, share []float64
		for round, d := range times[i] {
			throughput = append(throughput, size/1e6/d.Seconds())
			share = append(share, 100*float64(times[0][round])/float64(d))
		}
		b.ReportMetric(median(throughput), s.name+"-MB/s")
		if i > 0 {
			b.ReportMetric(median(share), s.name+"/"+subjects[0].name+"-%")
		}
	}
	b.ReportMetric(0, "ns/op") // of all subjects together: it says nothing
}

// random is data that is really there: memory that was never written is one page of zeros, which the caches hold.
func random() []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
	return data
}

func key() []byte { return bytes.Repeat([]byte{7}, 32) }

func newGCM(b *testing.B) cipher.AEAD {
	b.Helper()
	block, err := aes.NewCipher(key())
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	return aead
}

func header(segment int) statestream.Header {
	return statestream.Header{Kind: statestream.KindImage, Direction: statestream.SourceToDestination, SegmentSize: segment}
}

func seal(to io.Writer, plaintext []byte, segment int) error {
	w, err := statestream.NewWriter(to, key(), header(segment))
	if err != nil {
		return err
	}
	if _, err := w.Write(plaintext); err != nil {
		return err
	}
	return w.Close()
}

func config() sio.Config {
	return sio.Config{Key: key(), MinVersion: sio.Version20, CipherSuites: []byte{sio.AES_256_GCM}}
}

func sealSIO(to io.Writer, plaintext []byte) error {
	w, err := sio.EncryptWriter(to, config())
	if err != nil {
		return err
	}
	if _, err := w.Write(plaintext); err != nil {
		return err
	}
	return w.Close()
}

// BenchmarkSeal encrypts to nowhere. sio's segments have 64 KiB: it runs there only.
func BenchmarkSeal(b *testing.B) {
	plaintext := random()
	for _, segment := range segments {
		b.Run(fmt.Sprintf("segment=%dK", segment>>10), func(b *testing.B) {
			aead, out, nonce := newGCM(b), make([]byte, 0, segment+16), make([]byte, 12)
			subjects := []subject{
				{"gcm", func() error {
					for at := 0; at < size; at += segment {
						aead.Seal(out, nonce, plaintext[at:at+segment], nil)
					}
					return nil
				}},
				{"statestream", func() error { return seal(io.Discard, plaintext, segment) }},
			}
			if segment == 64<<10 {
				subjects = append(subjects, subject{"sio", func() error { return sealSIO(io.Discard, plaintext) }})
			}
			race(b, subjects)
		})
	}
}

// BenchmarkOpen decrypts from memory to nowhere. copy+gcm is AES-256-GCM alone with the copy that reading from an io.Reader is: what a
// stream can reach at most.
func BenchmarkOpen(b *testing.B) {
	plaintext := random()
	for _, segment := range segments {
		b.Run(fmt.Sprintf("segment=%dK", segment>>10), func(b *testing.B) {
			aead, out, nonce := newGCM(b), make([]byte, 0, segment), make([]byte, 12)
			var records [][]byte
			for at := 0; at < size; at += segment {
				records = append(records, aead.Seal(nil, nonce, plaintext[at:at+segment], nil))
			}
			buf := make([]byte, segment+16)
			var sealed, sealedSIO bytes.Buffer
			if err := seal(&sealed, plaintext, segment); err != nil {
				b.Fatal(err)
			}
			subjects := []subject{
				{"gcm", func() error {
					for _, record := range records {
						if _, err := aead.Open(out, nonce, record, nil); err != nil {
							return err
						}
					}
					return nil
				}},
				{"copy+gcm", func() error {
					for _, record := range records {
						copy(buf, record)
						if _, err := aead.Open(buf[:0], nonce, buf, nil); err != nil {
							return err
						}
					}
					return nil
				}},
				{"statestream", func() error {
					r, err := statestream.NewReader(bytes.NewReader(sealed.Bytes()), key(), header(segment))
					if err != nil {
						return err
					}
					return drain(r)
				}},
			}
			if segment == 64<<10 {
				if err := sealSIO(&sealedSIO, plaintext); err != nil {
					b.Fatal(err)
				}
				subjects = append(subjects, subject{"sio", func() error {
					r, err := sio.DecryptReader(bytes.NewReader(sealedSIO.Bytes()), config())
					if err != nil {
						return err
					}
					return drain(r)
				}})
			}
			race(b, subjects)
		})
	}
}

func drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	if err == nil && n != size {
		return fmt.Errorf("opened %d bytes, expected %d", n, size)
	}
	return err
}
