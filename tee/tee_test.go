package tee_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/sealed"
	"github.com/safeconduct/safeconduct/tee"
)

var _ sealed.KeySource = tee.SealKeys{}

func raw() []byte { return []byte("sixteen byte key") }

func TestAKeyThatNoHardwareMakesIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		raw []byte
		ok  bool
	}{
		"sixteen bytes":           {raw(), true},
		"all zero":                {make([]byte, tee.SealKeySize), false},
		"nothing":                 {nil, false},
		"one byte too few":        {raw()[1:], false},
		"one byte too many":       {append(raw(), 1), false},
		"zero but for one bit":    {append(make([]byte, tee.SealKeySize-1), 1), true},
		"a longer run of zeros":   {make([]byte, 32), false},
		"a key of another scheme": {bytes.Repeat([]byte{7}, 32), false},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := tee.NewSealKey(tc.raw)
			if tc.ok != (err == nil) || tc.ok != (key.Bytes() != nil) {
				t.Fatalf("got %v, %v", key.Bytes() != nil, err)
			}
			if !tc.ok && !errors.Is(err, tee.ErrUnusableKey) {
				t.Errorf("got %v, want ErrUnusableKey", err)
			}
		})
	}
}

func TestAKeyDoesNotPrintItsBytes(t *testing.T) {
	key, err := tee.NewSealKey(raw())
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		Exported tee.SealKey
		hidden   tee.SealKey
		pointer  *tee.SealKey
	}
	h := holder{key, key, &key}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%p", "%T"} {
		for _, v := range []any{key, &key, h, &h, []tee.SealKey{key}, map[string]tee.SealKey{"k": key}} {
			fmt.Fprintf(&out, verb, v)
		}
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("key", "key", key, "pointer", &key)
	slog.New(slog.NewTextHandler(&out, nil)).Info("key", "key", key, "holder", h)
	if err := json.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&out, key.String(), key.GoString(), fmt.Errorf("failed with %v", key))
	decimal := strings.Trim(fmt.Sprintf("%v", raw()), "[]")
	for _, leak := range []string{string(raw()), fmt.Sprintf("%x", raw()), fmt.Sprintf("%X", raw()), decimal, decimal[:20]} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in the output", leak)
		}
	}
	if !strings.Contains(out.String(), "[sealing key]") {
		t.Error("the output does not say that there is a key")
	}
}

func TestClearOverwritesEveryCopyOfAKey(t *testing.T) {
	key, err := tee.NewSealKey(raw())
	if err != nil {
		t.Fatal(err)
	}
	same, err := tee.NewSealKey(raw())
	if err != nil {
		t.Fatal(err)
	}
	if !key.Equal(same) || key.Equal(tee.SealKey{}) || (tee.SealKey{}).Equal(tee.SealKey{}) {
		t.Error("equality is wrong")
	}
	bytesOfCopy := key.Bytes()
	key.Clear()
	tee.SealKey{}.Clear()
	if !bytes.Equal(bytesOfCopy, make([]byte, tee.SealKeySize)) || key.Equal(same) {
		t.Error("the key is still there")
	}
}

// enclave gives what it is told to.
type enclave struct {
	key tee.SealKey
	err error
}

func (e enclave) Mode() tee.Mode { return tee.ModeSimulated }
func (e enclave) Quote(context.Context, [tee.ReportDataSize]byte) ([]byte, error) {
	return nil, tee.ErrNoHardware
}
func (e enclave) SealKey(context.Context) (tee.SealKey, []byte, error) {
	return e.key, []byte("info"), e.err
}
func (e enclave) RecoverSealKey(context.Context, []byte) (tee.SealKey, error) { return e.key, e.err }

func TestSealKeysShowsAnEnclaveAsAKeySource(t *testing.T) {
	key, err := tee.NewSealKey(raw())
	if err != nil {
		t.Fatal(err)
	}
	keys := tee.SealKeys{Enclave: enclave{key: key}}
	got, info, err := keys.SealKey(t.Context())
	if err != nil || !bytes.Equal(got, raw()) || string(info) != "info" || keys.Mode() != sealed.ModeSimulated {
		t.Errorf("got %v, %q, %v, %s", got, info, err, keys.Mode())
	}
	if got, err := keys.RecoverSealKey(t.Context(), info); err != nil || !bytes.Equal(got, raw()) {
		t.Errorf("got %v, %v", got, err)
	}
	failing := tee.SealKeys{Enclave: enclave{err: tee.ErrForeignKeyInfo}}
	if got, err := failing.RecoverSealKey(t.Context(), info); got != nil || !errors.Is(err, tee.ErrForeignKeyInfo) {
		t.Errorf("got %v, %v", got, err)
	}
}
