package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	counterIndex tpm2.TPMHandle = 0x01500016
	// pcr is one that anybody may extend and nothing at boot does (PC Client Platform TPM Profile, section 4.6.2).
	pcr = 23
)

// vault is what the guest keeps in its TPM.
type vault struct {
	tpm     transport.TPM
	counter tpm2.NamedHandle
	parent  tpm2.NamedHandle
	held    tpm2.NamedHandle
	private tpm2.TPM2BPrivate
	public  tpm2.TPM2BPublic
}

// provision makes the counter, unless an earlier start of the guest has left one to go on with, a storage key, a sealed secret, and keeps the secret loaded.
func provision(tpm transport.TPM) (*vault, error) {
	v := &vault{tpm: tpm}
	if err := v.defineCounter(); err != nil {
		return nil, fmt.Errorf("counter: %w", err)
	}
	primary, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("storage key: %w", err)
	}
	v.parent = tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	created, err := tpm2.Create{
		ParentHandle: v.parent,
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
		}),
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	v.private, v.public = created.OutPrivate, created.OutPublic
	if v.held, err = v.load(); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *vault) defineCounter() error {
	public := tpm2.TPMSNVPublic{
		NVIndex: counterIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthWrite: true, AuthRead: true, NT: tpm2.TPMNTCounter, NoDA: true},
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}.Execute(v.tpm)
	if err != nil && !errors.Is(err, tpm2.TPMRCNVDefined) {
		return err
	}
	read, err := tpm2.NVReadPublic{NVIndex: counterIndex}.Execute(v.tpm)
	if err != nil {
		return err
	}
	v.counter = tpm2.NamedHandle{Handle: counterIndex, Name: read.NVName}
	return nil
}

// tick uses everything once and says what it found.
func (v *vault) tick(n uint64) string {
	var failed []string
	note := func(what string, err error) {
		if err != nil {
			failed = append(failed, what+":"+word(err))
		}
	}
	note("increment", v.increment())
	note("extend", v.extend(n))
	count, err := v.count()
	note("nvread", err)
	value, err := v.pcr()
	note("pcrread", err)
	fresh, err := v.unsealFresh()
	note("unseal", err)
	held, err := v.unseal(v.held)
	note("held", err)
	line := fmt.Sprintf("SC tick=%d nv=%d pcr=%x unseal=%x held=%x", n, count, value, fresh, held)
	if len(failed) > 0 {
		line += " err=" + strings.Join(failed, ",")
	}
	return line
}

func (v *vault) increment() error {
	_, err := tpm2.NVIncrement{AuthHandle: v.owner(), NVIndex: v.counter}.Execute(v.tpm)
	return err
}

func (v *vault) owner() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
}

func (v *vault) extend(n uint64) error {
	digest := sha256.Sum256(binary.BigEndian.AppendUint64(nil, n))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(v.tpm)
	return err
}

func (v *vault) count() (uint64, error) {
	read, err := tpm2.NVRead{AuthHandle: v.owner(), NVIndex: v.counter, Size: 8}.Execute(v.tpm)
	if err != nil {
		return 0, err
	}
	if len(read.Data.Buffer) != 8 {
		return 0, fmt.Errorf("%d bytes, expected 8", len(read.Data.Buffer))
	}
	return binary.BigEndian.Uint64(read.Data.Buffer), nil
}

func (v *vault) pcr() ([]byte, error) {
	read, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcr),
	}}}}.Execute(v.tpm)
	if err != nil {
		return nil, err
	}
	if len(read.PCRValues.Digests) != 1 {
		return nil, fmt.Errorf("%d values, expected 1", len(read.PCRValues.Digests))
	}
	return read.PCRValues.Digests[0].Buffer, nil
}

// load brings the sealed object into the TPM, where it takes one of the transient slots until it is flushed.
func (v *vault) load() (tpm2.NamedHandle, error) {
	loaded, err := tpm2.Load{ParentHandle: v.parent, InPrivate: v.private, InPublic: v.public}.Execute(v.tpm)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("loading: %w", err)
	}
	return tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}, nil
}

func (v *vault) unsealFresh() ([]byte, error) {
	object, err := v.load()
	if err != nil {
		return nil, err
	}
	digest, err := v.unseal(object)
	if _, flushErr := (tpm2.FlushContext{FlushHandle: object.Handle}).Execute(v.tpm); err == nil && flushErr != nil {
		return nil, fmt.Errorf("flushing: %w", flushErr)
	}
	return digest, err
}

// unseal returns SHA-256 of the secret: the console shows that it is the same, not what it is.
func (v *vault) unseal(object tpm2.NamedHandle) ([]byte, error) {
	out, err := tpm2.Unseal{ItemHandle: object}.Execute(v.tpm)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(out.OutData.Buffer)
	clear(out.OutData.Buffer)
	return digest[:], nil
}
