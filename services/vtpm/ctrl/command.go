// Package ctrl is the wire format of swtpm's control channel, as QEMU's tpm-emulator backend and swtpm speak it over a unix stream
// socket: commands with their descriptors one way, replies the other. It implements the message layouts of swtpm's
// tpm_ioctl.h (man 3 swtpm_ioctls), all integers big-endian:
//
//	request = command (4) || fixed body || data        reply = result (4) || rest of the fixed part || data
//
// The channel has no framing of its own: the length of a message follows from its command, so a command that is not known here ends the
// connection. Sizes are bounded before anything is allocated.
//
// Non-goals: no TPM commands (they travel on the data channel, which never passes through here), no ioctl transport (CUSE), no
// blobs in several pieces (on a socket neither QEMU nor swtpm makes any).
package ctrl

import (
	"errors"
	"fmt"
)

// Bounds in bytes. swtpm's own states are well under 1 MiB.
const (
	// MaxBlob bounds a state blob, plain or encrypted.
	MaxBlob = 8 << 20
	// MaxInfo bounds the text of GET_INFO.
	MaxInfo = 64 << 10
	// MaxHash bounds one HASH_DATA.
	MaxHash = 1 << 20
)

// Errors of the channel. Each names one reason; test with errors.Is.
var (
	// ErrUnknownCommand: the length of the command is not known, nothing after it can be read.
	ErrUnknownCommand = errors.New("unknown control command")
	// ErrTruncated: the connection ended inside a message.
	ErrTruncated = errors.New("control message is truncated")
	// ErrTooLong: a length field exceeds its bound.
	ErrTooLong = errors.New("control message is too long")
	// ErrMalformed: fields contradict each other or the protocol.
	ErrMalformed = errors.New("malformed control message")
	// ErrDescriptors: a descriptor is missing, or came where none belongs.
	ErrDescriptors = errors.New("unexpected number of file descriptors")
)

// Command of the control channel. The zero value is none.
type Command uint32

// The commands, by the numbers of swtpm's tpm_ioctl.h.
const (
	GetCapability       Command = 1
	Init                Command = 2
	Shutdown            Command = 3
	GetTPMEstablished   Command = 4
	SetLocality         Command = 5
	HashStart           Command = 6
	HashData            Command = 7
	HashEnd             Command = 8
	CancelTPMCmd        Command = 9
	StoreVolatile       Command = 10
	ResetTPMEstablished Command = 11
	GetStateBlob        Command = 12
	SetStateBlob        Command = 13
	Stop                Command = 14
	GetConfig           Command = 15
	SetDataFD           Command = 16
	SetBufferSize       Command = 17
	GetInfo             Command = 18
	LockStorage         Command = 19
)

// String returns swtpm's name of the command.
func (c Command) String() string {
	names := [...]string{
		"", "GET_CAPABILITY", "INIT", "SHUTDOWN", "GET_TPMESTABLISHED", "SET_LOCALITY", "HASH_START", "HASH_DATA", "HASH_END",
		"CANCEL_TPM_CMD", "STORE_VOLATILE", "RESET_TPMESTABLISHED", "GET_STATEBLOB", "SET_STATEBLOB", "STOP", "GET_CONFIG", "SET_DATAFD",
		"SET_BUFFERSIZE", "GET_INFO", "LOCK_STORAGE",
	}
	if c == 0 || int64(c) >= int64(len(names)) {
		return fmt.Sprintf("command %d", uint32(c))
	}
	return names[c]
}

// StateType of a blob, by swtpm's numbers (PTM_BLOB_TYPE_*). The zero value is none.
type StateType uint32

// The types of a blob.
const (
	// Permanent is the NV memory: seeds, keys, counters, NV indices.
	Permanent StateType = 1
	// Volatile holds PCRs, sessions and loaded objects.
	Volatile StateType = 2
	// Savestate exists for a TPM 1.2 only; a TPM 2.0 answers ResultNotFound.
	Savestate StateType = 3
)

// String returns the type's name in lower case.
func (t StateType) String() string {
	switch t {
	case Permanent:
		return "permanent"
	case Volatile:
		return "volatile"
	case Savestate:
		return "savestate"
	default:
		return fmt.Sprintf("state type %d", uint32(t))
	}
}

// Results that the proxy itself deals in (TPM 1.2 numbers, which the control channel uses for TPM 2.0 as well).
const (
	// ResultOK says that the command was done.
	ResultOK uint32 = 0
	// ResultBadParameter is TPM_BAD_PARAMETER.
	ResultBadParameter uint32 = 3
	// ResultFail is TPM_FAIL. QEMU reports "pre-save failed" when it gets it for a blob, and the VM runs on.
	ResultFail uint32 = 9
	// ResultNotFound is the base of the non-fatal results: a blob that does not exist. QEMU tolerates it.
	ResultNotFound uint32 = 0x800
)

// InitDeleteVolatile is the flag of INIT with which QEMU starts a TPM from blobs that it has set (PTM_INIT_FLAG_DELETE_VOLATILE).
const InitDeleteVolatile uint32 = 1

// layout says how long the messages of a command are, in bytes.
type layout struct {
	request int // fixed body of the request, without the command
	reply   int // fixed part of the reply, the result included
	// maxData bounds what follows the fixed body of a request; its length is the last word of that body. 0: nothing follows.
	maxData int
	// maxAnswer bounds what follows the fixed part of a reply, likewise.
	maxAnswer int
}

func layoutOf(c Command) (layout, error) {
	switch c {
	case GetCapability, GetTPMEstablished, GetConfig:
		return layout{reply: 8}, nil
	case Shutdown, HashStart, HashEnd, CancelTPMCmd, StoreVolatile, Stop, SetDataFD:
		return layout{reply: 4}, nil
	case Init, SetLocality, ResetTPMEstablished, LockStorage:
		return layout{request: 4, reply: 4}, nil
	case HashData:
		return layout{request: 4, reply: 4, maxData: MaxHash}, nil
	case GetStateBlob:
		return layout{request: 12, reply: 16, maxAnswer: MaxBlob}, nil
	case SetStateBlob:
		return layout{request: 12, reply: 4, maxData: MaxBlob}, nil
	case SetBufferSize:
		return layout{request: 4, reply: 16}, nil
	case GetInfo:
		return layout{request: 16, reply: 12, maxAnswer: MaxInfo}, nil
	default:
		return layout{}, fmt.Errorf("%w: %d", ErrUnknownCommand, uint32(c))
	}
}

// ErrorIsRead says whether every QEMU reads the whole fixed part of an error reply to c. QEMU up to 9.1 always does, and would wait for ever
// for the rest of the four bytes that swtpm sends; later ones read four bytes for the commands for which this is false.
func (c Command) ErrorIsRead() bool {
	switch c {
	case GetCapability, GetConfig, SetBufferSize, GetInfo:
		return false
	default:
		return true
	}
}
