// Package measure hashes what a host runs VMs with: its kernel image, the KVM modules, QEMU, swtpm and Safeconduct's own host-side binaries.
//
// Every configured item is in the result, with a digest or with the reason why there is none; nothing disappears. A file says what is on
// the disk, read through the host's kernel, not what was loaded into memory from it: PCRs and the IMA list are for that. It judges nothing (package
// appraise does) and measures no memory.
package measure

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/integrity/hostlog"
)

// Kind says how an item is found.
type Kind string

const (
	// KindFile is the file at Path.
	KindFile Kind = "file"
	// KindKernelImage is the image of the running release: /boot/vmlinuz-RELEASE or /usr/lib/modules/RELEASE/vmlinuz.
	KindKernelImage Kind = "kernel-image"
	// KindKernelModules is one entry for each module of KernelModules that the running kernel has, named NAME/MODULE.
	KindKernelModules Kind = "kernel-modules"
	// KindKernelCommandLine is the text of /proc/cmdline.
	KindKernelCommandLine Kind = "kernel-command-line"
	// KindProgram is the ELF file at Path, its interpreter and every shared library that they ask for, named NAME and NAME/lib/SONAME.
	KindProgram Kind = "program"
	// KindTree is everything under the directory at Path, as one digest; see tree.go.
	KindTree Kind = "tree"
	// KindCPU is the processor's microcode and what the kernel says of its vulnerabilities, for information.
	KindCPU Kind = "cpu"
)

// kinds lists them all, in the order of a message.
func kinds() []Kind {
	return []Kind{KindFile, KindProgram, KindTree, KindKernelImage, KindKernelModules, KindKernelCommandLine, KindCPU}
}

// DefaultMaxFileSize bounds a measured file, in bytes.
const DefaultMaxFileSize = 1 << 30

// Item is one thing to measure.
type Item struct {
	// Name of its entry in the log; see hostlog.ValidName.
	Name string
	Kind Kind
	// Path on the host, absolute; KindFile, KindProgram and KindTree only.
	Path string
}

// Config of a Measurer.
type Config struct {
	// Root is where the host's file system is seen from here: "/" (the default), or the mount under which an enclave or a container has it.
	// Symbolic links are followed inside it.
	Root  string
	Items []Item
	// MaxFileSize in bytes; a larger file is not hashed, and its entry says so. 0 means DefaultMaxFileSize.
	MaxFileSize int64
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// ErrConfig means that the configuration contradicts itself.
var ErrConfig = errors.New("invalid measurement configuration")

// ErrChanged means that a file did not hold still while it was hashed.
var ErrChanged = errors.New("file changed while it was measured")

// Measurer measures one host. It is safe for concurrent use; measurements run one after the other and share a cache.
type Measurer struct {
	root  string
	items []Item
	// turn is held by the measurement under way; a channel, so that waiting for it ends with the context.
	turn   chan struct{}
	hasher *hasher
	// objects are what ELF files ask for, by path and digest. The measurement under way has it.
	objects map[string]*object
}

// New checks the configuration. It reads nothing. The error is ErrConfig.
func New(c Config) (*Measurer, error) {
	if c.Root == "" {
		c.Root = "/"
	}
	if !filepath.IsAbs(c.Root) {
		return nil, fmt.Errorf("%w: root: found %q, expected an absolute path", ErrConfig, c.Root)
	}
	if c.MaxFileSize < 0 {
		return nil, fmt.Errorf("%w: maximum file size: found %d, expected a number of bytes", ErrConfig, c.MaxFileSize)
	}
	if err := checkItems(c.Items); err != nil {
		return nil, err
	}
	return &Measurer{
		root: filepath.Clean(c.Root), items: slices.Clone(c.Items), turn: make(chan struct{}, 1),
		objects: map[string]*object{},
		hasher:  newHasher(cmp.Or(c.MaxFileSize, DefaultMaxFileSize), c.Now),
	}, nil
}

// checkItems refuses what could not be told apart in the log. All names that a list of modules can give are taken.
func checkItems(items []Item) error {
	taken, programs := map[string]string{}, map[string]string{}
	for _, it := range items {
		if it.Kind == KindProgram {
			programs[it.Name] = it.Name
		}
		names := []string{it.Name}
		switch it.Kind {
		case KindFile, KindProgram, KindTree:
			if !filepath.IsAbs(it.Path) {
				return fmt.Errorf("%w: item %q: path: found %q, expected an absolute path", ErrConfig, it.Name, it.Path)
			}
		case KindKernelImage, KindKernelModules, KindKernelCommandLine, KindCPU:
			if it.Path != "" {
				return fmt.Errorf("%w: item %q: path: found %q, expected none: the running release decides", ErrConfig, it.Name, it.Path)
			}
			if it.Kind == KindKernelModules {
				for _, module := range KernelModules() {
					names = append(names, it.Name+"/"+module)
				}
			}
		default:
			return fmt.Errorf("%w: item %q: kind: found %q, expected one of %v", ErrConfig, it.Name, it.Kind, kinds())
		}
		for _, name := range names {
			if !hostlog.ValidName(name) {
				return fmt.Errorf("%w: name: found %q, expected [a-z0-9][a-z0-9/_.-]{0,127}", ErrConfig, name)
			}
			if other, ok := taken[name]; ok {
				return fmt.Errorf("%w: name %q: found in items %q and %q, expected in one", ErrConfig, name, other, it.Name)
			}
			taken[name] = it.Name
		}
	}
	for name, item := range taken {
		for i, c := range name {
			if c != '/' {
				continue
			}
			if program, ok := programs[name[:i]]; ok && strings.HasPrefix(name[i:], "/lib/") {
				return fmt.Errorf("%w: name %q of item %q: found under item %q, expected elsewhere: its libraries have these names", ErrConfig, name, item, program)
			}
		}
	}
	if len(taken) > hostlog.MaxEntries {
		return fmt.Errorf("%w: found room for %d entries, expected at most %d", ErrConfig, len(taken), hostlog.MaxEntries)
	}
	return nil
}

// Measure measures every item now and returns the entries, sorted by name. Files that have not changed since the last time are not read
// again. It fails when the context ends, when a file cannot be read to its end, and with ErrChanged; what is missing, unreadable or too
// large does not make it fail, but gives an entry that says so.
func (m *Measurer) Measure(ctx context.Context) ([]*v1.IntegrityEntry, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("measure: waiting for another measurement: %w", context.Cause(ctx))
	}
	m.hasher.begin()
	defer m.hasher.forgetUnused()
	var entries []*v1.IntegrityEntry
	for _, it := range m.items {
		found, err := m.item(ctx, it)
		if err != nil {
			return nil, fmt.Errorf("measure: %s: %w", it.Name, err)
		}
		entries = append(entries, found...)
	}
	if len(entries) > hostlog.MaxEntries {
		return nil, fmt.Errorf("measure: %d entries, more than the %d of a log: measure fewer programs", len(entries), hostlog.MaxEntries)
	}
	slices.SortFunc(entries, func(a, b *v1.IntegrityEntry) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return entries, nil
}

// asText is the entry of a short text that is its own source.
func asText(name, path, content string) *v1.IntegrityEntry {
	sum := sha256.Sum256([]byte(content))
	return &v1.IntegrityEntry{
		Name: name, Path: path, DigestAlgorithm: hostlog.SHA256, Digest: sum[:],
		Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ, Size: uint64(len(content)), Text: content,
	}
}

func (m *Measurer) item(ctx context.Context, it Item) ([]*v1.IntegrityEntry, error) {
	switch it.Kind {
	case KindKernelImage:
		return m.kernelImage(ctx, it.Name)
	case KindKernelModules:
		return m.kernelModules(ctx, it.Name)
	case KindKernelCommandLine:
		return m.commandLine(it.Name)
	case KindCPU:
		return m.cpu(it.Name)
	case KindProgram:
		return m.program(ctx, it.Name, it.Path)
	case KindTree:
		return m.tree(ctx, it.Name, it.Path)
	default:
		e, err := m.file(ctx, it.Name, it.Path)
		return []*v1.IntegrityEntry{e}, err
	}
}

// file measures the file at a path of the host.
func (m *Measurer) file(ctx context.Context, name, path string) (*v1.IntegrityEntry, error) {
	resolved, err := resolve(m.root, path)
	if err == nil {
		var d digest
		if d, err = m.hasher.hash(ctx, filepath.Join(m.root, resolved)); err == nil {
			return &v1.IntegrityEntry{
				Name: name, Path: resolved, DigestAlgorithm: hostlog.SHA256, Digest: d.sum[:],
				Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ, Size: uint64(d.size),
			}, nil
		}
	}
	if reason := absence(err); reason != "" {
		return absent(name, path, reason), nil
	}
	return nil, fmt.Errorf("%s: %w", path, err)
}

func absent(name, path, reason string) *v1.IntegrityEntry {
	return &v1.IntegrityEntry{Name: name, Path: path, Provenance: v1.Provenance_PROVENANCE_ENCLAVE_READ, Absent: reason}
}
