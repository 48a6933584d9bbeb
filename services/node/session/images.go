package session

import (
	"errors"
	"fmt"
	"slices"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// Bounds of a session's images.
const (
	maxImages        = 64
	maxImageFailures = 16
)

// Part names a part of an image: a file that crosses in pieces, in order.
type Part struct {
	// Name of the file, the same on both nodes.
	Name string
	// Offset is the bytes of the file before the part; Last says that the file ends with it.
	Offset uint64
	Last   bool
}

// image is how far one file has crossed.
type image struct {
	next  uint64
	most  uint64 // the furthest that next has been
	whole bool
	busy  bool
}

// BeginPart claims a part of an image under the instance's live session: the next one, or an earlier one again, for a helper that broke off
// before it had stored what crossed. The image is then whole again only when its last part has crossed again. EndPart must follow.
func (t *Table) BeginPart(instance string, role v1.Role, part Part) (*Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked()
	s := t.findLocked(func(s *Session) bool {
		return s.rec.Instance == instance && s.rec.Role == role && s.rec.State.Live()
	})
	if s == nil {
		return nil, t.missingLocked(v1.Reason_REASON_NO_ARMED_SESSION, "armed", instance, role)
	}
	if s.closing {
		return nil, s.closed()
	}
	im := s.images[part.Name]
	switch {
	case im == nil && len(s.images) >= maxImages:
		return nil, refusal.New(v1.Reason_REASON_LIMIT_EXCEEDED, "session %s has %d images already", s.rec.ID, maxImages)
	case im == nil:
		im = new(image)
	case im.busy:
		return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "another part of image %s is crossing", part.Name)
	}
	if part.Offset > im.next {
		return nil, refusal.New(v1.Reason_REASON_WRONG_STATE, "a part of image %s is missing before this one", part.Name).
			Want(fmt.Sprintf("offset %d", part.Offset), fmt.Sprintf("at most %d", im.next))
	}
	if err := t.advanceLocked(s, Transfer, nil); err != nil {
		return nil, err
	}
	if s.images == nil {
		s.images = make(map[string]*image)
	}
	im.busy, im.whole, im.next = true, false, part.Offset
	s.images[part.Name] = im
	return s, nil
}

func (s *Session) closed() error {
	return refusal.New(v1.Reason_REASON_WRONG_STATE, "session %s is being committed", s.rec.ID).Want("a commit under way", "a session that takes more")
}

// EndPart records how a part ended: its length in bytes if it crossed whole, else the error. It returns the error, or a refusal if the session
// ended meanwhile. A session in which too many parts were not authentic is aborted: its images are being altered.
func (s *Session) EndPart(part Part, length uint64, failed error) error {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	im := s.images[part.Name]
	im.busy = false
	switch {
	case s.rec.State.Ended():
		return refusal.New(v1.Reason_REASON_WRONG_STATE, "session %s ended while the part crossed", s.rec.ID).
			Want(s.rec.State.String(), Transferring.String())
	case errors.Is(failed, refusal.Because(v1.Reason_REASON_CIPHERTEXT_INVALID)):
		if s.partFailures++; s.partFailures > maxImageFailures {
			t.mustAdvanceLocked(s, Abort, refusal.From(failed))
		}
		return failed
	case failed != nil:
		return failed
	}
	im.next, im.whole = im.next+length, part.Last
	if im.next > im.most { // a part that crosses again counts once
		s.rec.ImageBytes += im.next - im.most
		im.most = im.next
	}
	return nil
}

// BeginCommit refuses if something began to cross under the session and has not crossed whole: an image, a blob that is under way, or one of a
// vTPM's two blobs without the other. Such a session must not be committed: the source's copy is the only whole one. Once it has answered nil, nothing
// further crosses under the session, so that what was whole stays so until Commit.
func (s *Session) BeginCommit() error {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if err := s.wholeLocked(); err != nil {
		return err
	}
	s.closing = true
	return nil
}

func (s *Session) wholeLocked() error {
	for name, im := range s.images {
		if !im.whole {
			return refusal.New(v1.Reason_REASON_WRONG_STATE, "image %s crossed in part only", name).
				Want(fmt.Sprintf("%d bytes", im.next), "its last part")
		}
	}
	crossed := func(kind v1.StateType) bool {
		return slices.ContainsFunc(s.rec.Blobs, func(b *v1.BlobReport) bool { return b.GetType() == kind })
	}
	for _, kind := range s.claimed {
		if !crossed(kind) {
			return refusal.New(v1.Reason_REASON_WRONG_STATE, "the %s blob is still crossing", BlobName(kind)).Want("a part of it", "all of it")
		}
	}
	permanent, volatile := crossed(v1.StateType_STATE_TYPE_PERMANENT), crossed(v1.StateType_STATE_TYPE_VOLATILE)
	if permanent != volatile {
		return refusal.New(v1.Reason_REASON_WRONG_STATE, "the vTPM's state crossed in part only").
			Want(fmt.Sprintf("permanent %t, volatile %t", permanent, volatile), "both")
	}
	return nil
}
