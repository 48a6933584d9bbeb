package keyschedule

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/safeconduct/safeconduct/crypto/channel"
)

// hexBytes is bytes that are hex in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

type scheduleVector struct {
	Name          string
	SeedS         hexBytes `json:"seed_s"`
	SeedD         hexBytes `json:"seed_d"`
	TH2, TH3, PRK hexBytes
	Keys          map[string]hexBytes
	ConfirmS      hexBytes `json:"confirm_s"`
	ConfirmD      hexBytes `json:"confirm_d"`
	Part          hexBytes `json:"image_part_nv_img_1048576_last"`
	Export        hexBytes `json:"export_tunnel_context"`
}

func readVectors(t testing.TB, name string, into any) {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

func readSchedule(t testing.TB) (vectors []scheduleVector) {
	t.Helper()
	readVectors(t, "schedule.json", &vectors)
	if len(vectors) < 2 {
		t.Fatal("too few vectors")
	}
	return vectors
}

func (v scheduleVector) schedule(t testing.TB) *Schedule {
	t.Helper()
	seedS, errS := SecretFrom(v.SeedS)
	seedD, errD := SecretFrom(v.SeedD)
	if err := errors.Join(errS, errD); err != nil {
		t.Fatal(err)
	}
	s, err := New([48]byte(v.TH2), seedS, seedD)
	if err != nil {
		t.Fatal(err)
	}
	seedS.Wipe() // the schedule must not need them any more
	seedD.Wipe()
	return s
}

// TestScheduleVectors compares with keys that crypto/testdata/vectors.py derived without this package.
func TestScheduleVectors(t *testing.T) {
	for _, v := range readSchedule(t) {
		t.Run(v.Name, func(t *testing.T) {
			s := v.schedule(t)
			check := func(what string, found, expected []byte) {
				t.Helper()
				if !bytes.Equal(found, expected) {
					t.Errorf("%s: found %x, expected %x", what, found, expected)
				}
			}
			check("PRK", s.prk()[:], v.PRK)
			check("confirm-S", s.confirmS.Bytes(), v.Keys["confirm-S"])
			check("confirm-D", s.confirmD.Bytes(), v.Keys["confirm-D"])
			check("channel-S", s.channelS.Bytes(), v.Keys["channel-S"])
			check("channel-D", s.channelD.Bytes(), v.Keys["channel-D"])
			check("confirmation of S", s.Confirm(Source), v.ConfirmS)
			check("confirmation of D", s.Confirm(Destination), v.ConfirmD)
			open(t, s, true)
			keys, err := s.Finish([48]byte(v.TH3))
			if err != nil {
				t.Fatal(err)
			}
			check("state", keys.State.Bytes(), v.Keys["state"])
			check("image", keys.Image.Bytes(), v.Keys["image"])
			check("secret", keys.Secret.Bytes(), v.Keys["secret"])
			check("stream", keys.Stream.Bytes(), v.Keys["stream"])
			check("close", keys.Close.Bytes(), v.Keys["close"])
			check("exporter", keys.exporter.Bytes(), v.Keys["exporter"])
			part, err := keys.ImagePart("nv.img", 1<<20, true)
			if err != nil {
				t.Fatal(err)
			}
			check("part of an image", part.Bytes(), v.Part)
			exported, err := keys.Export("tunnel", []byte("context"))
			if err != nil {
				t.Fatal(err)
			}
			check("exported", exported.Bytes(), v.Export)
		})
	}
}

// open does what must come before Finish.
func open(t testing.TB, s *Schedule, source bool) *channel.Channel {
	t.Helper()
	peer := Source
	if source {
		peer = Destination
	}
	if !s.CheckConfirm(peer, s.Confirm(peer)) {
		t.Fatal("the confirmation does not match itself")
	}
	ch, err := s.Channel(source, [48]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func TestNoTwoKeysAreEqual(t *testing.T) {
	seen := make(map[string]string)
	for _, v := range readSchedule(t) {
		v.Keys["export"] = v.Export
		v.Keys["prk"] = v.PRK[:32]
		for purpose, key := range v.Keys {
			if other, ok := seen[string(key)]; ok {
				t.Errorf("%s of %s is also %s", purpose, v.Name, other)
			}
			seen[string(key)] = purpose + " of " + v.Name
		}
	}
	if len(seen) != 24 {
		t.Errorf("found %d keys, expected 24", len(seen))
	}
}

func TestEveryInputChangesEveryKey(t *testing.T) {
	base := readSchedule(t)[0]
	derive := func(v scheduleVector) map[string][]byte {
		s := v.schedule(t)
		keys := map[string][]byte{
			"confirm-S": bytes.Clone(s.confirmS.Bytes()), "confirm-D": bytes.Clone(s.confirmD.Bytes()),
			"channel-S": bytes.Clone(s.channelS.Bytes()), "channel-D": bytes.Clone(s.channelD.Bytes()),
		}
		open(t, s, true)
		k, err := s.Finish([48]byte(v.TH3))
		if err != nil {
			t.Fatal(err)
		}
		for purpose, key := range map[string]*Secret{"state": k.State, "image": k.Image, "secret": k.Secret, "stream": k.Stream, "close": k.Close, "exporter": k.exporter} {
			keys[purpose] = key.Bytes()
		}
		return keys
	}
	flip := func(b hexBytes) hexBytes {
		c := bytes.Clone(b)
		c[len(c)-1] ^= 1
		return c
	}
	phase := map[string]bool{"confirm-S": true, "confirm-D": true, "channel-S": true, "channel-D": true}
	before := derive(base)
	for _, c := range []struct {
		name       string
		change     func(*scheduleVector)
		phaseStays bool
	}{
		{"the source's seed", func(v *scheduleVector) { v.SeedS = flip(v.SeedS) }, false},
		{"the destination's seed", func(v *scheduleVector) { v.SeedD = flip(v.SeedD) }, false},
		{"the seeds swapped", func(v *scheduleVector) { v.SeedS, v.SeedD = v.SeedD, v.SeedS }, false},
		{"th2", func(v *scheduleVector) { v.TH2 = flip(v.TH2) }, false},
		{"th3, which changes the keys of the transfer only", func(v *scheduleVector) { v.TH3 = flip(v.TH3) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := base
			c.change(&v)
			for purpose, key := range derive(v) {
				same := bytes.Equal(key, before[purpose])
				if expected := c.phaseStays && phase[purpose]; same != expected {
					t.Errorf("%s: same is %v, expected %v", purpose, same, expected)
				}
			}
		})
	}
}

func TestConfirmationIsRefused(t *testing.T) {
	v, w := readSchedule(t)[0], readSchedule(t)[1]
	for _, c := range []struct {
		name string
		role Role
		tag  []byte
	}{
		{"when it is the other role's", Source, v.ConfirmD},
		{"when it is ours, reflected", Destination, v.ConfirmS},
		{"when it is another session's", Source, w.ConfirmS},
		{"when it is cut", Source, v.ConfirmS[:47]},
		{"when it is longer", Source, append(bytes.Clone(v.ConfirmS), 0)},
		{"when it is empty", Source, nil},
		{"when a bit is flipped", Source, append(bytes.Clone(v.ConfirmS[:47]), v.ConfirmS[47]^1)},
		{"for a role that is none", 0, v.ConfirmS},
		{"for a role that is none, and no tag", 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := v.schedule(t)
			if s.CheckConfirm(c.role, c.tag) {
				t.Error("accepted")
			}
			for _, source := range []bool{true, false} {
				if _, err := s.Channel(source, [48]byte{}); !errors.Is(err, ErrNotConfirmed) {
					t.Errorf("channel: found %v, expected %v", err, ErrNotConfirmed)
				}
			}
		})
	}
	if s := v.schedule(t); len(s.Confirm(Source)) != ConfirmSize || s.Confirm(0) != nil || s.Confirm(3) != nil {
		t.Error("a confirmation of the wrong size, or of no role")
	}
}

func TestTheOrderOfTheProtocolIsEnforced(t *testing.T) {
	v := readSchedule(t)[0]
	s := v.schedule(t)
	want := func(step string, found, expected error) {
		t.Helper()
		if !errors.Is(found, expected) {
			t.Errorf("%s: found %v, expected %v", step, found, expected)
		}
	}
	_, err := s.Finish([48]byte{1})
	want("keys before the channel", err, ErrNoChannel)
	if !s.CheckConfirm(Source, v.ConfirmS) {
		t.Fatal("not confirmed")
	}
	_, err = s.Channel(true, [48]byte{1})
	want("the source's channel on its own confirmation", err, ErrNotConfirmed)
	_, err = s.Channel(false, [48]byte{1})
	want("the destination's channel", err, nil)
	_, err = s.Channel(false, [48]byte{1})
	want("a second channel", err, ErrChannelTaken)
	if s.channelS.Bytes() != nil || s.channelD.Bytes() != nil {
		t.Error("the schedule kept the channel's keys")
	}
	_, err = s.Finish([48]byte{1})
	want("keys after the channel", err, nil)
	s.Wipe()
	s.Wipe()
	_, err = s.Finish([48]byte{1})
	want("keys after the wipe", err, ErrWiped)
	_, err = s.Channel(false, [48]byte{1})
	want("channel after the wipe", err, ErrWiped)
	if s.Confirm(Source) != nil || s.CheckConfirm(Source, v.ConfirmS) || s.CheckConfirm(Source, nil) {
		t.Error("a wiped schedule confirms")
	}
}

func TestTheTwoEndsUnderstandEachOther(t *testing.T) {
	v := readSchedule(t)[0]
	source, destination := open(t, v.schedule(t), true), open(t, v.schedule(t), false)
	n, sealed, err := source.Seal([]byte("M1"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := destination.Open(n, sealed); err != nil || string(got) != "M1" {
		t.Errorf("found %q, %v", got, err)
	}
}

func TestARenewedExchangeGivesOtherKeysAndTheSameOneTheSame(t *testing.T) {
	s := readSchedule(t)[0].schedule(t)
	open(t, s, true)
	a, errA := s.Finish([48]byte{1})
	b, errB := s.Finish([48]byte{1})
	c, errC := s.Finish([48]byte{2})
	if err := errors.Join(errA, errB, errC); err != nil {
		t.Fatal(err)
	}
	if !a.State.Equal(b.State) || a.State.Equal(c.State) {
		t.Error("the keys do not follow th3")
	}
	a.Wipe()
	if a.State.Bytes() != nil || b.State.Bytes() == nil {
		t.Error("wiping one set of keys did not wipe it, or wiped the other")
	}
	s.Wipe()
	if b.State.Bytes() == nil {
		t.Error("wiping the schedule wiped keys that it has given away")
	}
}

func TestWipeClearsEveryKey(t *testing.T) {
	s := readSchedule(t)[0].schedule(t)
	p := s.prk()
	aliases := [][]byte{p[:], s.confirmS.Bytes(), s.confirmD.Bytes(), s.channelS.Bytes(), s.channelD.Bytes()}
	open(t, s, true)
	k, err := s.Finish([48]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []*Secret{k.State, k.Image, k.Secret, k.Stream, k.Close, k.exporter} {
		aliases = append(aliases, key.Bytes())
	}
	s.Wipe()
	k.Wipe()
	for i, b := range aliases {
		if len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("key %d is not cleared", i)
		}
	}
	if _, err := k.Export("tunnel", nil); !errors.Is(err, ErrWiped) {
		t.Errorf("export: found %v, expected %v", err, ErrWiped)
	}
}

func TestEveryPartOfAnImageHasAKeyOfItsOwn(t *testing.T) {
	s := readSchedule(t)[0].schedule(t)
	open(t, s, true)
	k, err := s.Finish([48]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, p := range []struct {
		name   string
		offset uint64
		last   bool
	}{{"a", 0, false}, {"a", 0, true}, {"a", 1, false}, {"b", 0, false}, {"a\x00", 0, false}} {
		key, err := k.ImagePart(p.name, p.offset, p.last)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[string(key.Bytes())]; ok {
			t.Errorf("%v has the key of %s", p, other)
		}
		seen[string(key.Bytes())] = fmt.Sprint(p)
	}
	k.Wipe()
	if _, err := k.ImagePart("a", 0, false); !errors.Is(err, ErrWiped) {
		t.Errorf("after wiping: %v", err)
	}
}

func TestExportsAreSeparate(t *testing.T) {
	s := readSchedule(t)[0].schedule(t)
	open(t, s, true)
	k, err := s.Finish([48]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Export("", []byte("context")); !errors.Is(err, ErrPurpose) {
		t.Errorf("found %v, expected %v", err, ErrPurpose)
	}
	seen := make(map[string]bool)
	for _, c := range [][2]string{{"ab", "c"}, {"a", "bc"}, {"abc", ""}, {"AB", "c"}, {"ab", "C"}} {
		e, err := k.Export(c[0], []byte(c[1]))
		if err != nil {
			t.Fatal(err)
		}
		seen[string(e.Bytes())] = true
	}
	if len(seen) != 5 {
		t.Errorf("found %d different keys, expected 5", len(seen))
	}
}

func TestAScheduleNeedsBothSeeds(t *testing.T) {
	seed, err := SecretFrom(canary)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]*Secret{"no source's": {nil, seed}, "no destination's": {seed, nil}, "a wiped one": {seed, {}}} {
		if _, err := New([48]byte{}, pair[0], pair[1]); !errors.Is(err, ErrWiped) {
			t.Errorf("%s: found %v, expected %v", name, err, ErrWiped)
		}
	}
}

// BenchmarkKeySchedule is everything that one side derives in a session, without the KEM.
func BenchmarkKeySchedule(b *testing.B) {
	seedS, errS := NewSecret(nil)
	seedD, errD := NewSecret(nil)
	if err := errors.Join(errS, errD); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s, err := New([48]byte{1}, seedS, seedD)
		if err != nil {
			b.Fatal(err)
		}
		open(b, s, true)
		k, err := s.Finish([48]byte{2})
		if err != nil {
			b.Fatal(err)
		}
		k.Wipe()
		s.Wipe()
	}
}
