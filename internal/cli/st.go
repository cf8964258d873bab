package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/transfer"
)

// storageTool is what all commands of st have.
type storageTool struct {
	*app
	target string
	glob   bool
	kind   config.Kind // of the open storage
}

func (a *app) storageTools() *cobra.Command {
	s := &storageTool{app: a}
	cmd := &cobra.Command{
		Use:   "st COMMAND",
		Short: "Look at the objects in the storage, and handle them one by one",
		Long: "Tools for what no other command does. Names are those of objects below the storage's prefix. Nothing here knows what a backup\n" +
			"needs: `backup-list`, `delete` and `copy` do.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage(cmd, "cannot run st: it needs one of the commands ls, get, cat, put, rm, stat, check, copy and transfer")
		},
	}
	pf := cmd.PersistentFlags()
	pf.StringVarP(&s.target, "target", "t", primaryStorage, "`name` of the storage: default, or one of WALG_FAILOVER_STORAGES")
	pf.BoolVarP(&s.glob, "glob", "g", false, "not in this version: names are taken as they are")
	cmd.AddCommand(s.ls(), s.get(), s.cat(), s.put(), s.rm(), s.stat(), s.check(), s.copy(), s.transfer())
	return cmd
}

// open opens the storage that --target names.
func (s *storageTool) open(cmd *cobra.Command, needed use) (transfer.End, error) {
	if err := s.prepare(cmd); err != nil {
		return transfer.End{}, err
	}
	a, err := s.storageNamed(s.target)
	if err != nil {
		return transfer.End{}, err
	}
	s.kind = a.config.Storage.Kind
	return a.end(cmd.Context(), needed)
}

func (s *storageTool) prepare(cmd *cobra.Command) error {
	if s.glob {
		return hint.With(usage(cmd, "cannot use --glob: this version of walden takes names as they are"), "`walden st ls -r` lists them, for a shell to choose from")
	}
	return s.load(true)
}

// storageNamed is the program with the settings of one of its storages.
func (a *app) storageNamed(name string) (*app, error) {
	if name == primaryStorage || name == "" {
		return a, nil
	}
	if name == "all" {
		return nil, hint.With(errors.New("cannot use all storages at once: these commands work on one"), a.storageNames())
	}
	c, err := a.config.FailoverStorage(name)
	if err != nil {
		return nil, hint.With(err, a.storageNames())
	}
	return a.with(c), nil
}

func (a *app) storageNames() string {
	return "the storages are " + strings.Join(append([]string{primaryStorage}, a.config.Storage.Failover...), ", ")
}

// objectName checks what was typed for an object.
func objectName(cmd *cobra.Command, text string) (string, error) {
	name := strings.TrimPrefix(text, "/")
	if err := storage.CheckKey(name); err != nil {
		return "", usage(cmd, "cannot use %q as the name of an object: %w", text, err)
	}
	return name, nil
}

// folderName checks what was typed for a folder. It ends in a slash; the root is "".
func folderName(cmd *cobra.Command, text string) (string, error) {
	name := strings.Trim(text, "/")
	if name == "" {
		return "", nil
	}
	if err := storage.CheckKey(name); err != nil {
		return "", usage(cmd, "cannot use %q as the name of a folder: %w", text, err)
	}
	return name + "/", nil
}

// noVersions refuses a flag that needs a storage with versions.
func noVersions(cmd *cobra.Command, flags ...string) error {
	for _, flag := range flags {
		if cmd.Flags().Changed(flag) {
			return hint.With(usage(cmd, "cannot use --%s: walden sees the current versions of objects only", flag),
				"the storage's own tools show earlier versions, and bring them back or remove them")
		}
	}
	return nil
}

func (s *storageTool) ls() *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "ls [FOLDER]",
		Short: "List the objects and folders in a folder",
		Args:  arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := noVersions(cmd, "all-versions"); err != nil {
				return err
			}
			folder, err := folderName(cmd, strings.Join(args, ""))
			if err != nil {
				return err
			}
			e, err := s.open(cmd, toCarry)
			if err != nil {
				return err
			}
			var list []storage.Object
			if recursive {
				list, err = transfer.Under(cmd.Context(), e, folder)
				if errors.Is(err, fs.ErrNotExist) {
					list, err = nil, nil
				}
			} else {
				list, err = directly(cmd.Context(), e, folder)
			}
			if err != nil {
				return err
			}
			for i := range list {
				list[i].Key = strings.TrimPrefix(list[i].Key, folder)
			}
			return printObjects(s.process.Stdout, list, s.kind == config.KindFile)
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "list all objects below the folder")
	cmd.Flags().Bool("all-versions", false, "not in this version: earlier versions of objects are not seen")
	return cmd
}

// directly lists what lies in a folder itself, folders first.
func directly(ctx context.Context, e transfer.End, folder string) ([]storage.Object, error) {
	var folders, objects []storage.Object
	for o, err := range e.Repo.List(ctx, folder) {
		if err != nil {
			return nil, fmt.Errorf("cannot list %q in %s: %w", folder, e, err)
		}
		if o.IsDir() {
			folders = append(folders, o)
		} else {
			objects = append(objects, o)
		}
	}
	byKey := func(a, b storage.Object) int { return strings.Compare(a.Key, b.Key) }
	slices.SortFunc(folders, byKey)
	slices.SortFunc(objects, byKey)
	return append(folders, objects...), nil
}

// maxObjectName is the longest name of an object that is shown as it is.
const maxObjectName = 4096

// printObjects prints a listing as WAL-G does (WAL-G format, "st ls"): the column of versions behind the name is empty, and slash is for
// storages of files, whose listings have one before the names of folders.
func printObjects(out io.Writer, list []storage.Object, slash bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "type\tsize\tlast modified\tname")
	for _, o := range list {
		kind, name := "obj", printable(o.Key, maxObjectName)
		if o.IsDir() {
			kind = "dir"
		}
		if slash && strings.Contains(name, "/") {
			name = "/" + name
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t\t\n", kind, o.Size, o.Modified.UTC(), name)
	}
	return w.Flush()
}

func (s *storageTool) stat() *cobra.Command {
	return &cobra.Command{
		Use:   "stat OBJECT",
		Short: "Show size and time of one object",
		Args:  arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := objectName(cmd, args[0])
			if err != nil {
				return err
			}
			e, err := s.open(cmd, toCarry)
			if err != nil {
				return err
			}
			o, err := e.Repo.Stat(cmd.Context(), name)
			if err != nil {
				return absent(err)
			}
			return printObjects(s.process.Stdout, []storage.Object{o}, false)
		},
	}
}

// absent adds advice to the error for an object that is not there.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return hint.With(err, "`walden st ls` shows what is there; names have their extensions")
	}
	return err
}

// unreadable adds advice where the bytes of an object are not what was expected.
func unreadable(err error) error {
	if errors.Is(err, catalog.ErrDamaged) {
		return hint.With(err, "documents (.json) are neither compressed nor encrypted; without decrypting and decompressing the bytes come as they are stored")
	}
	return absent(err)
}

func (s *storageTool) get() *cobra.Command {
	var asEncrypted, asCompressed bool
	cmd := &cobra.Command{
		Use:   "get OBJECT DESTINATION",
		Short: "Fetch one object into a file",
		Long: "Fetches the object, decrypted with the configured keys and decompressed as its extension says. DESTINATION is a file, which appears when\n" +
			"it is complete, or a directory, in which the file gets the object's name.",
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := objectName(cmd, args[0])
			if err != nil {
				return err
			}
			off := repo.Layers{Encrypted: !asEncrypted, Compressed: !asCompressed}
			e, err := s.open(cmd, needs(off, toDecrypt))
			if err != nil {
				return err
			}
			base := path.Base(name)
			if off.Compressed {
				base = e.Repo.TrimExtension(base)
			}
			dest, err := destination(args[1], base)
			if err != nil {
				return err
			}
			return unreadable(writeWhole(dest, func(f *os.File) error {
				return e.Repo.Again(cmd.Context(), name, func() (bool, error) {
					if err := errors.Join(f.Truncate(0), rewound(f)); err != nil {
						return false, err
					}
					return readInto(cmd.Context(), e, name, off, f)
				})
			}))
		},
	}
	cmd.Flags().BoolVar(&asEncrypted, "no-decrypt", false, "leave it encrypted")
	cmd.Flags().BoolVar(&asCompressed, "no-decompress", false, "leave it compressed")
	return cmd
}

// needs is what keys are needed for.
func needs(l repo.Layers, encrypted use) use {
	if l.Encrypted {
		return encrypted
	}
	return toCarry
}

func rewound(f io.Seeker) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// readInto writes what is in an object. Where the storage fails another attempt may help.
func readInto(ctx context.Context, e transfer.End, name string, off repo.Layers, w io.Writer) (retry bool, err error) {
	body, err := e.Repo.OpenLayers(ctx, name, off)
	if err != nil {
		return false, err // opening is repeated by the store
	}
	in := &remembering{r: body}
	_, err = io.Copy(w, in)
	if cerr := body.Close(); err == nil {
		err, in.err = cerr, cerr
	}
	return in.err != nil && !errors.Is(in.err, catalog.ErrDamaged), err
}

// remembering keeps a failure of reading apart from one of writing.
type remembering struct {
	r   io.Reader
	err error
}

func (r *remembering) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// destination is the file that an object is fetched into.
func destination(given, base string) (string, error) {
	info, err := os.Stat(given)
	if err == nil && info.IsDir() {
		given = filepath.Join(given, base)
		info, err = os.Stat(given)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return given, nil
	case err != nil:
		return "", fmt.Errorf("cannot fetch into %s: %w", given, err)
	case info.IsDir():
		return "", fmt.Errorf("cannot fetch into %s: it is a directory", given)
	case !info.Mode().IsRegular():
		return "", hint.With(fmt.Errorf("cannot fetch into %s: it is no regular file", given), "`walden st cat` writes to standard output")
	}
	return given, nil
}

// writeWhole makes a file appear under its name when write has filled it and it is on the disk, and not before.
func writeWhole(dest string, write func(*os.File) error) (err error) {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	dir, base := filepath.Split(dest)
	temporary := filepath.Join(dir, "."+base+".walden-"+hex.EncodeToString(random[:])+".tmp")
	f, err := os.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("cannot fetch into %s: %w", dest, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temporary))
		}
	}()
	if err = write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot fetch into %s: %w", dest, err)
	}
	if err = os.Rename(temporary, dest); err != nil {
		return fmt.Errorf("cannot fetch into %s: %w", dest, err)
	}
	d, serr := os.Open(filepath.Dir(dest))
	if serr == nil {
		serr = errors.Join(d.Sync(), d.Close())
	}
	if serr != nil {
		return fmt.Errorf("cannot make sure that %s is on the disk: %w", dest, serr)
	}
	return nil
}

func (s *storageTool) cat() *cobra.Command {
	var off repo.Layers
	cmd := &cobra.Command{
		Use:   "cat OBJECT",
		Short: "Write one object to standard output",
		Long:  "Writes the object as it is stored, unless --decrypt or --decompress is given.",
		Args:  arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := objectName(cmd, args[0])
			if err != nil {
				return err
			}
			e, err := s.open(cmd, needs(off, toDecrypt))
			if err != nil {
				return err
			}
			_, err = readInto(cmd.Context(), e, name, off, s.process.Stdout)
			return unreadable(err)
		},
	}
	cmd.Flags().BoolVar(&off.Encrypted, "decrypt", false, "decrypt it with the configured keys")
	cmd.Flags().BoolVar(&off.Compressed, "decompress", false, "decompress it as its extension says")
	return cmd
}

func (s *storageTool) put() *cobra.Command {
	var force, plain, clear, stdin bool
	cmd := &cobra.Command{
		Use:   "put FILE OBJECT",
		Short: "Store a file as an object",
		Long: "Stores the file, compressed and encrypted as configured; the codec's extension is appended to the name. With --read-stdin there is no\n" +
			"FILE, and standard input is stored.",
		Args: arguments(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 2) == stdin {
				return usage(cmd, "cannot run put: it takes a file and the name of an object, or with --read-stdin the name alone")
			}
			name, err := objectName(cmd, args[len(args)-1])
			if err != nil {
				return err
			}
			on := repo.Layers{Encrypted: !clear, Compressed: !plain}
			e, err := s.open(cmd, needs(on, toEncrypt))
			if err != nil {
				return err
			}
			write := once(s.process.Stdin)
			if !stdin {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("cannot store %s: %w", args[0], err)
				}
				defer f.Close()
				if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
					return hint.With(fmt.Errorf("cannot store %s: it is no regular file", args[0]), "--read-stdin stores what comes through a pipe")
				}
				write = func(w io.Writer) error {
					if err := rewound(f); err != nil {
						return err
					}
					_, err := io.Copy(w, f)
					return err
				}
			}
			stored, err := e.Repo.PutLayers(cmd.Context(), name, on, force, write)
			if errors.Is(err, storage.ErrExists) {
				return hint.With(fmt.Errorf("cannot store %q in %s: %w", name, e, err), "--force replaces it")
			}
			if err != nil {
				return err
			}
			s.log.Info("stored", "object", stored.Object, "bytes", stored.Size)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "replace the object if there is one")
	f.BoolVar(&plain, "no-compress", false, "do not compress it")
	f.BoolVar(&clear, "no-encrypt", false, "do not encrypt it")
	f.BoolVarP(&stdin, "read-stdin", "s", false, "store standard input")
	return cmd
}

// once passes on what can be read once only.
func once(r io.Reader) func(io.Writer) error {
	done := false
	return func(w io.Writer) error {
		if done {
			return hint.With(errors.New("cannot try again: standard input was read already"), "put it into a file first")
		}
		done = true
		if r == nil {
			return nil
		}
		_, err := io.Copy(w, r)
		return err
	}
}

func (s *storageTool) rm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm OBJECT|FOLDER",
		Short: "Remove one object, or all below a folder",
		Long: "Removes the object of that name, or if there is none all that lies below the folder of that name; with a slash at its end it is a folder.\n" +
			"It is refused for everything, for a folder without which an archive is none, and for the contents of a backup that is listed, unless\n" +
			"--force is given. What is not needed any more `walden delete` knows.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := noVersions(cmd, "all-versions", "version-id"); err != nil {
				return err
			}
			name := strings.TrimLeft(args[0], "/")
			if name != "" {
				if _, err := folderName(cmd, name); err != nil {
					return err
				}
			}
			e, err := s.open(cmd, toCarry)
			if err != nil {
				return err
			}
			return s.remove(cmd.Context(), e, name, force)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "remove it even if an archive, or a listed backup, goes with it")
	f.Bool("all-versions", false, "not in this version: earlier versions of objects are not seen")
	f.String("version-id", "", "not in this version: `earlier` versions of objects are not seen")
	return cmd
}

// remove removes what a name stands for: sentinels first, so that no backup is listed of which something is missing.
func (s *storageTool) remove(ctx context.Context, e transfer.End, name string, force bool) error {
	refused := func(err error) error {
		return hint.With(fmt.Errorf("cannot remove %q from %s: %w", name, e, err), "--force removes it all the same")
	}
	if name == "" && !force { // before it is listed, which may take long
		return refused(e.Catalog.Protects(ctx, "", nil))
	}
	found, err := transfer.Under(ctx, e, name)
	if err != nil {
		return absent(err)
	}
	var first, rest []string
	for _, o := range found {
		if catalog.IsSentinel(o.Key) {
			first = append(first, o.Key)
		} else {
			rest = append(rest, o.Key)
		}
	}
	if !force {
		if err := e.Catalog.Protects(ctx, strings.TrimSuffix(name, "/"), append(slices.Clone(first), rest...)); err != nil {
			return refused(err)
		}
	}
	for _, keys := range [][]string{first, rest} {
		if len(keys) == 0 {
			continue
		}
		if err := e.Repo.Delete(ctx, keys...); err != nil {
			return fmt.Errorf("cannot remove everything that %q stands for; the same command again removes the rest: %w", name, err)
		}
	}
	s.log.Info("removed", "name", name, "objects", len(found))
	return nil
}

func (s *storageTool) check() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check COMMAND",
		Short: "Find out whether the storage can be used",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage(cmd, "cannot run check: it needs one of the commands read and write")
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "read [OBJECT...]",
		Short: "Find out whether the storage can be listed, and holds the objects",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := s.open(cmd, toCarry)
			if err != nil {
				return err
			}
			if _, err := directly(cmd.Context(), e, ""); err != nil {
				return err
			}
			var missing []string
			for _, arg := range args {
				name, err := objectName(cmd, arg)
				if err != nil {
					return err
				}
				switch _, err := e.Repo.Stat(cmd.Context(), name); {
				case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EISDIR):
					missing = append(missing, arg)
				case err != nil:
					return err
				}
			}
			if len(missing) > 0 {
				return fmt.Errorf("cannot find %s in %s: %w", strings.Join(missing, ", "), e, fs.ErrNotExist)
			}
			s.log.Info("Read check OK", "storage", e.String())
			return nil
		},
	}, &cobra.Command{
		Use:   "write",
		Short: "Find out whether an object can be stored, read back and removed",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := s.open(cmd, toCarry)
			if err != nil {
				return err
			}
			if err := checkWrite(cmd.Context(), e); err != nil {
				return err
			}
			s.log.Info("Write check OK", "storage", e.String())
			return nil
		},
	})
	return cmd
}

// checkWrite stores an object that nobody else has, reads it back and removes it.
func checkWrite(ctx context.Context, e transfer.End) error {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	name := transfer.ProbePrefix + "_" + hex.EncodeToString(random[:])
	err := e.Repo.PutPlainNew(ctx, name, random[:])
	if err == nil {
		var back []byte
		if back, err = e.Repo.GetPlain(ctx, name, int64(len(random))); err == nil && !bytes.Equal(back, random[:]) {
			err = fmt.Errorf("%q was stored in %s, and something else was read back", name, e)
		}
	}
	if derr := e.Repo.Delete(context.WithoutCancel(ctx), name); derr != nil {
		err = errors.Join(err, hint.With(derr, "the object "+name+" may be left behind; it does no harm"))
	}
	if err != nil {
		return fmt.Errorf("cannot use %s for writing: %w", e, err)
	}
	return nil
}

func (s *storageTool) copy() *cobra.Command {
	var o transfer.ObjectsOptions
	var from, to string
	cmd := &cobra.Command{
		Use:   "copy --from FILE --to FILE",
		Short: "Copy objects between the storages of two configuration files",
		Long: "Copies the object, or all below the folder, that --prefix names; without it everything. What is there already has to have the same content.\n" +
			"Objects come as they are stored, unless they are decrypted with the keys of the one file, or encrypted with those of the other. For\n" +
			"backups there is `walden copy`, which knows what belongs to them.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.glob || cmd.Flags().Changed("target") {
				return usage(cmd, "cannot use --target and --glob here: the files of --from and --to name the storages")
			}
			if strings.Trim(o.Prefix, "/") != "" {
				if _, err := folderName(cmd, o.Prefix); err != nil {
					return err
				}
			}
			o.Prefix = strings.TrimLeft(o.Prefix, "/")
			source, target, err := s.twoConfigurations(cmd, from, to)
			if err != nil {
				return err
			}
			for file, missing := range map[string]bool{
				from: o.Decrypt && !source.config.Encryption.Requested, to: o.Encrypt && !target.config.Encryption.Requested,
			} {
				if missing {
					return fmt.Errorf("cannot decrypt or encrypt: %s sets no key", file)
				}
			}
			d, err := s.ends(cmd.Context(), "st copy", source, target, needs(repo.Layers{Encrypted: o.Decrypt}, toDecrypt), needs(repo.Layers{Encrypted: o.Encrypt}, toEncrypt))
			if err != nil {
				return err
			}
			report, err := transfer.CopyObjects(cmd.Context(), d, o)
			if err != nil {
				return absent(err)
			}
			s.reportTransfer("copied", report)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "configuration `FILE` of the storage that is copied from")
	f.StringVar(&to, "to", "", "configuration `FILE` of the storage that is copied to")
	f.StringVarP(&o.Prefix, "prefix", "p", "", "copy this `object`, or all below this folder")
	f.BoolVarP(&o.Decrypt, "decrypt-source", "d", false, "decrypt with the keys of the source's configuration")
	f.BoolVarP(&o.Encrypt, "encrypt-source", "e", false, "encrypt with the keys of the destination's configuration")
	return cmd
}

func (s *storageTool) transfer() *cobra.Command {
	o := transfer.MoveOptions{}
	var source string
	var concurrency int
	cmd := &cobra.Command{
		Use:   "transfer COMMAND",
		Short: "Move objects between the storages of WALG_FAILOVER_STORAGES and the primary one",
		Long: "Moves what lies in one storage to another, for example what WAL-G has put into a failover storage back to the primary one. An object leaves\n" +
			"the source when it was read back at the target and found to be the same. What was cut off is completed by the same command.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage(cmd, "cannot run transfer: it needs one of the commands files, pg-wals and backups")
		},
	}
	run := func(cmd *cobra.Command, move func(context.Context, transfer.Deps, transfer.MoveOptions) (transfer.Report, error)) error {
		switch {
		case source == "":
			return usage(cmd, "cannot run %s: --source is needed, the name of the storage to move from", cmd.Name())
		case source == s.target:
			return usage(cmd, "cannot run %s: source and target are both %q", cmd.Name(), source)
		case concurrency < 1 || o.MaxFiles < 0 || o.MaxBackups < 0 || o.Checks < 1 || o.Interval < 0:
			return usage(cmd, "cannot run %s: a number is out of range", cmd.Name())
		}
		if err := s.prepare(cmd); err != nil {
			return err
		}
		from, err := s.storageNamed(source)
		if err != nil {
			return err
		}
		to, err := s.storageNamed(s.target)
		if err != nil {
			return err
		}
		d, err := s.ends(cmd.Context(), "st transfer", from, to, toCarry, toCarry)
		if err != nil {
			return err
		}
		d.Workers = to.workers(concurrency, d.To.Repo.PutMemory())
		report, err := move(cmd.Context(), d, o)
		if err == nil {
			s.reportTransfer("moved", report)
		}
		return err
	}
	files := &cobra.Command{
		Use:   "files PREFIX",
		Short: "Move one object, or all below a folder",
		Args:  arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := folderName(cmd, args[0]); err != nil {
				return err
			}
			if o.Prefix = strings.TrimLeft(args[0], "/"); o.Prefix == "" {
				return usage(cmd, "cannot move everything: name an object or a folder")
			}
			return run(cmd, transfer.Move)
		},
	}
	wals := &cobra.Command{
		Use:   "pg-wals",
		Short: "Move all WAL",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Prefix = catalog.WALFolder
			return run(cmd, transfer.Move)
		},
	}
	backups := &cobra.Command{
		Use:   "backups [NAME]",
		Short: "Move backups",
		Long: "Moves all backups, or the one named: the sentinel last, so that a backup is listed only where it is complete. What a backup is based on is\n" +
			"copied first, and stays as long as another backup needs it. WAL does not go with them: see `st transfer pg-wals`.",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Backup = strings.Join(args, "")
			return run(cmd, transfer.MoveBackups)
		},
	}
	backups.Flags().IntVar(&o.MaxBackups, "max-backups", 0, "move `N` backups at most (default: no limit)")
	pf := cmd.PersistentFlags()
	pf.StringVarP(&source, "source", "s", "", "`name` of the storage to move from: default, or one of WALG_FAILOVER_STORAGES")
	pf.BoolVarP(&o.Overwrite, "overwrite", "o", false, "replace what has the same name and other content at the target")
	pf.BoolVarP(&o.Preserve, "preserve", "p", false, "leave everything where it is, too")
	pf.IntVarP(&concurrency, "concurrency", "c", 10, "move `N` objects at the same time")
	pf.IntVarP(&o.MaxFiles, "max-files", "m", 0, "move `N` objects at most (default: no limit)")
	pf.BoolVar(&o.FailFast, "fail-fast", false, "end with the first object that cannot be moved")
	pf.IntVar(&o.Checks, "appearance-checks", 3, "look `N` times for an object at the target before it is removed at the source")
	pf.DurationVar(&o.Interval, "appearance-checks-interval", time.Second, "`time` between two looks")
	cmd.AddCommand(files, wals, backups)
	return cmd
}
