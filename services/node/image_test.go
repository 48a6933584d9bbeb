package node

import (
	"bytes"
	"context"
	"errors"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

const mib = 1 << 20

// half closes in on a stream: it sends data in messages and closes.
func sendChunks(data []byte, send func([]byte) error) {
	for len(data) > 0 {
		n := min(len(data), 700_001) // not a multiple of anything
		_ = send(data[:n])           // a refusal shows in Recv
		data = data[n:]
	}
}

func (n *testNode) protectImage(ctx context.Context, h *v1.ImageHeader, plaintext []byte) ([]byte, error) {
	rpc, err := n.crypto().ProtectImage(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		_ = rpc.Send(&v1.ProtectImageRequest{Body: &v1.ProtectImageRequest_Header{Header: h}})
		sendChunks(plaintext, func(b []byte) error {
			return rpc.Send(&v1.ProtectImageRequest{Body: &v1.ProtectImageRequest_Data{Data: b}})
		})
		_ = rpc.CloseSend()
	}()
	return collect(func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err })
}

func (n *testNode) unprotectImage(ctx context.Context, h *v1.ImageHeader, ciphertext []byte) ([]byte, error) {
	rpc, err := n.crypto().UnprotectImage(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		_ = rpc.Send(&v1.UnprotectImageRequest{Body: &v1.UnprotectImageRequest_Header{Header: h}})
		sendChunks(ciphertext, func(b []byte) error {
			return rpc.Send(&v1.UnprotectImageRequest{Body: &v1.UnprotectImageRequest_Data{Data: b}})
		})
		_ = rpc.CloseSend()
	}()
	return collect(func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err })
}

func imagePart(offset int, last bool) *v1.ImageHeader {
	return &v1.ImageHeader{InstanceId: vmID, Name: "tpm2-00.permall", Offset: uint64(offset), Last: last}
}

func TestAnImageCrossesInPartsAndResumesAfterABreak(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	image := random(5*mib + 12345)
	first, second := image[:3*mib], image[3*mib:]

	sealed, err := r.src.protectImage(t.Context(), imagePart(0, false), first)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, first[1000:1032]) {
		t.Error("the part crosses in clear")
	}
	if _, err := r.dst.unprotectImage(t.Context(), imagePart(0, false), sealed[:len(sealed)/2]); err == nil {
		t.Fatal("half a part is a whole one")
	}
	_, err = r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()})
	want(t, "a commit with half an image", err, v1.Reason_REASON_WRONG_STATE)

	plain, err := r.dst.unprotectImage(t.Context(), imagePart(0, false), sealed)
	if err != nil || !bytes.Equal(plain, first) {
		t.Fatalf("the part that was begun again: %d bytes, %v", len(plain), err)
	}
	if sealed, err = r.src.protectImage(t.Context(), imagePart(3*mib, true), second); err != nil {
		t.Fatal(err)
	}
	if plain, err = r.dst.unprotectImage(t.Context(), imagePart(3*mib, true), sealed); err != nil || !bytes.Equal(plain, second) {
		t.Fatalf("the last part: %d bytes, %v", len(plain), err)
	}
	if plain, err = r.dst.unprotectImage(t.Context(), imagePart(3*mib, true), sealed); err != nil || !bytes.Equal(plain, second) {
		t.Fatalf("the last part again, for a helper that lost it: %d bytes, %v", len(plain), err)
	}
	got, err := r.src.migration().Commit(t.Context(), &v1.CommitRequest{SessionId: s.GetSessionId()})
	if err != nil || got.GetSession().GetBytesProtected() < uint64(len(image)) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestPartsOfImagesThatAreRefused(t *testing.T) {
	r := newRig(t)
	_, err := r.src.protectImage(t.Context(), imagePart(0, true), []byte("x"))
	want(t, "no session", err, v1.Reason_REASON_NO_ARMED_SESSION)
	r.armed(t, "m1")
	_, err = r.src.protectImage(t.Context(), imagePart(1, true), []byte("x"))
	want(t, "a part out of order", err, v1.Reason_REASON_WRONG_STATE)
	_, err = r.src.protectImage(t.Context(), &v1.ImageHeader{InstanceId: vmID, Name: "a b"}, nil)
	want(t, "a name with a space", err, v1.Reason_REASON_INVALID_REQUEST)
	_, err = r.src.protectImage(t.Context(), &v1.ImageHeader{InstanceId: vmID}, nil)
	want(t, "no name", err, v1.Reason_REASON_INVALID_REQUEST)
	_, err = r.src.protectImage(t.Context(), &v1.ImageHeader{InstanceId: vmID, Name: "a", Offset: 1 << 50}, nil)
	want(t, "a huge offset", err, v1.Reason_REASON_LIMIT_EXCEEDED)
	_, err = r.src.protectImage(t.Context(), nil, nil)
	want(t, "no header", err, v1.Reason_REASON_INVALID_REQUEST)
	_, err = r.src.unprotectImage(t.Context(), imagePart(0, true), nil)
	want(t, "the wrong direction", err, v1.Reason_REASON_NO_ARMED_SESSION)

	sealed, err := r.src.protectImage(t.Context(), imagePart(0, false), random(mib))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.dst.unprotectImage(t.Context(), imagePart(0, true), sealed)
	want(t, "a part passed off as the last", err, v1.Reason_REASON_CIPHERTEXT_INVALID)
	other := imagePart(0, false)
	other.Name = "another"
	_, err = r.dst.unprotectImage(t.Context(), other, sealed)
	want(t, "a part of another image", err, v1.Reason_REASON_CIPHERTEXT_INVALID)
	for _, at := range []int{50, len(sealed) / 2, len(sealed) - 1} {
		altered := bytes.Clone(sealed)
		altered[at] ^= 1
		_, err = r.dst.unprotectImage(t.Context(), imagePart(0, false), altered)
		want(t, "a flipped bit", err, v1.Reason_REASON_CIPHERTEXT_INVALID)
	}
	if _, err = r.dst.unprotectImage(t.Context(), imagePart(0, false), sealed); err != nil {
		t.Errorf("the part itself: %v", err)
	}
}

func TestASessionWhoseImagesAreAlteredAgainAndAgainEnds(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	sealed, err := r.src.protectImage(t.Context(), imagePart(0, true), random(100))
	if err != nil {
		t.Fatal(err)
	}
	sealed[len(sealed)-1] ^= 1
	for range 17 {
		_, err = r.dst.unprotectImage(t.Context(), imagePart(0, true), sealed)
		want(t, "an altered part", err, v1.Reason_REASON_CIPHERTEXT_INVALID)
	}
	if got := r.dst.session(t, s.GetSessionId()); got.GetState() != v1.SessionState_SESSION_STATE_ABORTED {
		t.Errorf("the session is %v", got.GetState())
	}
}

func TestAPartOfAnImageEndsWithItsSession(t *testing.T) {
	r := newRig(t)
	s := r.armed(t, "m1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rpc, err := r.src.crypto().ProtectImage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(m *v1.ProtectImageRequest) {
		if err := rpc.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	data := &v1.ProtectImageRequest{Body: &v1.ProtectImageRequest_Data{Data: random(mib)}}
	send(&v1.ProtectImageRequest{Body: &v1.ProtectImageRequest_Header{Header: imagePart(0, true)}})
	send(data)
	if _, err := rpc.Recv(); err != nil { // it crosses
		t.Fatal(err)
	}
	if _, err := r.src.migration().Abort(t.Context(), &v1.AbortRequest{SessionId: s.GetSessionId()}); err != nil {
		t.Fatal(err)
	}
	_ = rpc.Send(data)
	_ = rpc.CloseSend()
	_, err = collect(func() ([]byte, bool, error) { m, err := rpc.Recv(); return m.GetData(), m.GetDone(), err })
	if err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a part of an aborted session crossed: %v", err)
	}
}
