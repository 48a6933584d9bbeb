package receipt

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func TestARecordIsReadBackAsItWasWritten(t *testing.T) {
	e := newRig(t).migrate(t)
	raw, err := Compose(e.vs)
	must(t, err)
	r, err := ParseRecord(raw)
	must(t, err)
	again, err := r.Encode()
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("encoded again: %v\n%s\n%s", err, again, raw)
	}
	t.Logf("%d bytes", len(raw))
	if r.MigrationID != migration || r.Source.Host != "compute1" || r.Destination.Found == nil || r.Source.Found != nil || r.Secrets != 1 {
		t.Errorf("found %+v", r)
	}
	if !bytes.Equal(r.SessionID, e.d.ID[:]) {
		t.Errorf("found session %x, expected %x as the handshake has it", []byte(r.SessionID), e.d.ID)
	}
}

func TestTheDestinationSeesTheSameRecord(t *testing.T) {
	e := newRig(t).migrate(t)
	e.vd.Times = e.vs.Times
	s, d := e.vs.record(), e.vd.record()
	for i, f := range s.fields() {
		switch g := d.fields()[i]; f.name {
		case "source.policy_svn", "destination.policy_svn", "source.found", "destination.found", "composed_by":
		default:
			if f != g {
				t.Errorf("%s: %s and %s", f.name, f.value, g.value)
			}
		}
	}
}

// TestOnlyOneEncodingIsRead takes what encoding/json would forgive.
func TestOnlyOneEncodingIsRead(t *testing.T) {
	raw, err := Compose(newRig(t).migrate(t).vs)
	must(t, err)
	text := string(raw)
	for name, changed := range map[string]string{
		"a key twice":            strings.Replace(text, `"mode":`, `"mode":"simulated","mode":`, 1),
		"a key in another case":  strings.Replace(text, `"mode":`, `"Mode":`, 1),
		"an unknown key":         strings.Replace(text, `"mode":`, `"more":1,"mode":`, 1),
		"a missing key":          strings.Replace(text, `"secrets":1,`, ``, 1),
		"keys in another order":  strings.Replace(strings.Replace(text, `"image_bytes":1048576,`, ``, 1), `"secrets":1,`, `"secrets":1,"image_bytes":1048576,`, 1),
		"white space":            strings.Replace(text, `"mode":`, `"mode": `, 1),
		"an end of line":         text + "\n",
		"something after it":     text + "{}",
		"an escaped character":   strings.Replace(text, `"compute1"`, `"\u0063ompute1"`, 1),
		"upper-case hex":         strings.Replace(text, `"session_id":"`, `"session_id":"A`, 1),
		"a number as a float":    strings.Replace(text, `"secrets":1`, `"secrets":1.0`, 1),
		"a number with exponent": strings.Replace(text, `"secrets":1`, `"secrets":1e0`, 1),
		"a fraction of a second": strings.Replace(text, `10:00:00Z`, `10:00:00.5Z`, 1),
		"a spelled-out zone":     strings.Replace(text, `10:00:00Z`, `10:00:00+00:00`, 1),
		"another zone":           strings.Replace(text, `10:00:00Z`, `10:00:00+01:00`, 1),
		"null for a list":        strings.Replace(text, `"advisories":[]`, `"advisories":null`, 1),
		"null for a finding":     strings.Replace(text, `"exchange":`, `"found":null,"exchange":`, 1),
		"an end of line in base64": func() string {
			i := strings.Index(text, `"kem_public":"`) + len(`"kem_public":"`)
			return text[:i+4] + `\n` + text[i+4:]
		}(),
		"nothing":         "",
		"another schema":  strings.Replace(text, Schema, Schema+"2", 1),
		"a huge document": text + strings.Repeat(" ", MaxRecord),
	} {
		if changed == text {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := ParseRecord([]byte(changed)); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: found %v, expected %v", name, err, ErrRecord)
		}
	}
}

func TestWhatCannotBeInARecord(t *testing.T) {
	e := newRig(t).migrate(t)
	for name, change := range map[string]func(r *Record){
		"no suite":                        func(r *Record) { r.Suite = "" },
		"a mode that there is not":        func(r *Record) { r.Mode = "unspecified" },
		"no instance":                     func(r *Record) { r.InstanceID = "" },
		"an instance in upper case":       func(r *Record) { r.InstanceID = strings.ToUpper(vm) },
		"a migration id with a space":     func(r *Record) { r.MigrationID = "a b" },
		"a long migration id":             func(r *Record) { r.MigrationID = strings.Repeat("a", 129) },
		"one host":                        func(r *Record) { r.Source.Host = r.Destination.Host },
		"one platform":                    func(r *Record) { r.Source.PlatformID = r.Destination.PlatformID },
		"a host with a slash":             func(r *Record) { r.Source.Host = "a/b" },
		"a short session id":              func(r *Record) { r.SessionID = r.SessionID[1:] },
		"a short nonce":                   func(r *Record) { r.Exchange.Nonce4 = r.Exchange.Nonce4[1:] },
		"a short th3":                     func(r *Record) { r.Transcript.TH3 = r.Transcript.TH3[1:] },
		"a short KEM key":                 func(r *Record) { r.Source.KEMPublic = r.Source.KEMPublic[1:] },
		"a long sealed seed":              func(r *Record) { r.Destination.Sealed = append(r.Destination.Sealed, 0) },
		"a huge policy version":           func(r *Record) { r.Source.PolicySVN = 1<<53 + 1 },
		"a finding without a status":      func(r *Record) { r.Source.Found = &Finding{Advisories: []string{}, Collateral: make([]byte, 32)} },
		"a finding without a list":        func(r *Record) { r.Source.Found = &Finding{TCBStatus: "UpToDate", Collateral: make([]byte, 32)} },
		"a finding without collateral":    func(r *Record) { r.Source.Found = &Finding{TCBStatus: "UpToDate", Advisories: []string{}} },
		"an advisory with markup":         func(r *Record) { r.Destination.Found.Advisories = []string{"<b>"} },
		"no list of state":                func(r *Record) { r.State = nil },
		"too much state":                  func(r *Record) { r.State = make([]Blob, maxState+1) },
		"an unknown type of state":        func(r *Record) { r.State = []Blob{{Type: "x"}} },
		"a huge blob":                     func(r *Record) { r.State = []Blob{{"volatile", 1 << 60, 1}} },
		"a huge image":                    func(r *Record) { r.ImageBytes = 1 << 60 },
		"no outcome":                      func(r *Record) { r.Outcome = Outcome{} },
		"a committed one with a reason":   func(r *Record) { r.Outcome.Reason = "ABORTED" },
		"an aborted one without a reason": func(r *Record) { r.Outcome.Result = Aborted },
		"a reason that there is not":      func(r *Record) { r.Outcome = Outcome{Aborted, "WHIM"} },
		"a committed one never armed":     func(r *Record) { r.MigrationID, r.Times.Armed = "", time.Time{} },
		"armed without a migration id":    func(r *Record) { r.MigrationID = "" },
		"no time of its end":              func(r *Record) { r.Times.Concluded = time.Time{} },
		"a time in another zone":          func(r *Record) { r.Times.Judged = r.Times.Judged.In(time.FixedZone("", 3600)) },
		"a composer that is neither":      func(r *Record) { r.ComposedBy = "nobody" },
	} {
		r := e.vs.record()
		change(r)
		if _, err := r.Encode(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: found %v, expected %v", name, err, ErrRecord)
		}
	}
}

// leaves calls f with every field of a record that has a value of its own, and its path.
func leaves(v reflect.Value, path string, f func(path string, v reflect.Value)) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time](), v.Type() == reflect.TypeFor[policy.Hex](), v.Type() == reflect.TypeFor[[]byte]():
		f(path, v)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			leaves(v.Field(i), strings.TrimPrefix(path+"."+name, "."), f)
		}
	case v.Kind() == reflect.Pointer:
		leaves(v.Elem(), path, f)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		for i := range v.Len() {
			leaves(v.Index(i), path, f)
		}
	default:
		f(path, v)
	}
}

// alter changes a value.
func alter(v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *string:
		*x += "x"
	case *uint64:
		*x++
	case *uint32:
		*x++
	case *policy.Hex:
		*x = append(bytes.Clone(*x), 1)
	case *[]byte:
		*x = append(bytes.Clone(*x), 1)
	case *[]string:
		*x = append(*x, "x")
	case *time.Time:
		*x = x.Add(time.Hour)
	default:
		panic(v.Type())
	}
}

// TestNoFieldIsLeftOutOfTheComparison alters each field of a record by reflection, so that a field that is added later is not forgotten.
func TestNoFieldIsLeftOutOfTheComparison(t *testing.T) {
	e := newRig(t).migrate(t)
	e.vs.Own = e.vd.Peer
	n := 0
	leaves(reflect.ValueOf(e.vs.record()), "", func(string, reflect.Value) { n++ })
	if n < 50 {
		t.Fatalf("found %d fields, expected more", n)
	}
	for i := range n {
		base, r := e.vs.record(), e.vs.record()
		r.State, r.Source.Found = append([]Blob{}, r.State...), &Finding{}
		*r.Source.Found = *base.Source.Found
		r.Destination.Found = &Finding{}
		*r.Destination.Found = *base.Destination.Found
		at, where := -1, ""
		leaves(reflect.ValueOf(r), "", func(path string, v reflect.Value) {
			if at++; at == i {
				alter(v)
				where = path
			}
		})
		err := differ(r, base)
		if strings.HasPrefix(where, "times.") {
			if err = sameTimes(&r.Times, &base.Times); err == nil {
				t.Errorf("%s: an hour's difference is not noticed", where)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: the difference is not noticed", where)
		}
	}
}

func TestADestinationSignsNothingThatItHasNotSeen(t *testing.T) {
	rig := newRig(t)
	e := rig.migrate(t)
	other := rig.migrate(t)
	for _, c := range []struct {
		name   string
		change func(v *View)
		field  string
	}{
		{"another migration id", func(v *View) { v.MigrationID = "another" }, "migration_id"},
		{"another handshake", func(v *View) { v.Transcript = other.vs.Transcript }, "session_id"},
		{"another log", func(v *View) { v.Transcript.LogD[0]++ }, "destination.log"},
		{"another nonce of the exchange", func(v *View) { v.Transcript.Nonce3 = make([]byte, 32) }, "exchange.nonce3"},
		{"another outcome", func(v *View) { v.Outcome = Outcome{Aborted, "ABORTED"} }, "outcome.result"},
		{"more state", func(v *View) { v.State = append([]Blob{{"volatile", 1, 1}}, v.State...) }, "state"},
		{"another size", func(v *View) { v.State = []Blob{{"permanent", 6188, 6301}, {"volatile", 9482, 9600}} }, "state"},
		{"fewer bytes of images", func(v *View) { v.ImageBytes-- }, "image_bytes"},
		{"more secrets", func(v *View) { v.Secrets++ }, "secrets"},
		{"the other role", func(v *View) { v.Role = v1.Role_ROLE_DESTINATION }, "composed_by"},
		{"a clock that is far behind", func(v *View) {
			v.Times = Times{began.Add(-time.Hour), began.Add(-time.Hour), began.Add(-time.Hour), began.Add(-time.Hour)}
		}, "times.established"},
		{"a later end", func(v *View) { v.Times.Concluded = v.Times.Concluded.Add(time.Hour) }, "times.concluded"},
		{"a verdict from before the session", func(v *View) { v.Times.Judged = began.Add(-time.Hour) }, "times.judged"},
		{"a verdict from after its end", func(v *View) { v.Times.Judged = began.Add(time.Hour) }, "times.judged"},
		{"a wrong word on what this side found", func(v *View) { v.Own = &Finding{"OutOfDate", []string{}, 1, make([]byte, 32)} }, "source.found"},
	} {
		v := *e.vs
		c.change(&v)
		record, err := Compose(&v)
		must(t, err)
		_, err = Check(record, e.vd)
		var r *refusal.Refusal
		if !errors.As(err, &r) || r.Reason != v1.Reason_REASON_PROTOCOL_VIOLATION || r.Item != c.field {
			t.Errorf("%s: found %v, expected a refusal of %s", c.name, err, c.field)
		}
	}
	if _, err := Check([]byte("{}"), e.vd); !errors.Is(err, refusal.Because(v1.Reason_REASON_PROTOCOL_VIOLATION)) || !errors.Is(err, ErrRecord) {
		t.Errorf("no record: %v", err)
	}
}

func TestWhatTheComposerAloneKnowsIsItsWord(t *testing.T) {
	e := newRig(t).migrate(t)
	for name, change := range map[string]func(v *View){
		"nothing special":                                func(*View) {},
		"the version of its own policy":                  func(v *View) { v.PolicySVN = 1234 },
		"what it found of the other side":                func(v *View) { v.Peer = &Finding{"OutOfDate", []string{"INTEL-SA-00001"}, 1, make([]byte, 32)} },
		"what the other side said that it found":         func(v *View) { v.Own = e.vd.Peer },
		"parts of images that broke off at the far side": func(v *View) { v.ImageBytes += 4096 },
		"when it judged last":                            func(v *View) { v.Times.Judged = v.Times.Armed },
	} {
		v := *e.vs
		change(&v)
		record, err := Compose(&v)
		must(t, err)
		if _, err := Check(record, e.vd); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAbortedMigrationEndsInARecordToo(t *testing.T) {
	e := newRig(t).migrate(t)
	for _, v := range []*View{e.vs, e.vd} {
		v.Outcome, v.MigrationID, v.Times.Armed = Outcome{Aborted, "SESSION_EXPIRED"}, "", time.Time{}
	}
	e.vd.State, e.vd.Secrets, e.vd.Outcome.Reason = nil, 0, "ABORTED" // less had crossed, and it does not know why
	record, err := Compose(e.vs)
	must(t, err)
	if _, err := Check(record, e.vd); err != nil {
		t.Errorf("composed by the source: %v", err)
	}
	e.vs.State, e.vs.Secrets = nil, 0
	if record, err = Compose(e.vd); err != nil {
		t.Fatal(err)
	}
	r, err := Check(record, e.vs)
	if err != nil || r.ComposedBy != roleDestination {
		t.Errorf("composed by the destination: %v", err)
	}
}

func TestBlobsAreNamedAsTheContractNamesThem(t *testing.T) {
	got := BlobsOf([]*v1.BlobReport{
		{Type: v1.StateType_STATE_TYPE_PERMANENT, PlaintextBytes: 1, CiphertextBytes: 2}, {Type: v1.StateType_STATE_TYPE_VOLATILE}, {Type: v1.StateType_STATE_TYPE_SAVESTATE},
	})
	if !reflect.DeepEqual(got, []Blob{{"permanent", 1, 2}, {"volatile", 0, 0}, {"savestate", 0, 0}}) {
		t.Errorf("found %v", got)
	}
}
