package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// gnupg is a key ring of the user postgres.
type gnupg struct{ home string }

// newKeyRing makes a key ring with one key, archive@example.org.
func newKeyRing(t *testing.T, passphrase string) gnupg {
	t.Helper()
	g := gnupg{filepath.Join(testenv.Scratch(t), "gnupg")}
	if err := os.Mkdir(g.home, 0o700); err != nil {
		t.Fatal(err)
	}
	own(t, g.home)
	t.Cleanup(func() { _ = g.command("gpgconf", "--kill", "gpg-agent").Run() }) // which the test may not have started
	g.run(t, nil, "--passphrase", passphrase, "--quick-generate-key", "archive@example.org", "future-default", "default", "never")
	return g
}

func (g gnupg) command(program string, args ...string) *exec.Cmd {
	cmd := testenv.AsPostgres(exec.Command(program, args...))
	cmd.Env = append(cmd.Environ(), "GNUPGHOME="+g.home)
	cmd.Dir = "/"
	return cmd
}

// run runs gpg, which has to succeed.
func (g gnupg) run(t *testing.T, in []byte, args ...string) []byte {
	t.Helper()
	cmd := g.command("gpg", append([]string{"--batch", "--quiet", "--yes", "--no-tty", "--pinentry-mode", "loopback"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gpg %v: %v: run scripts/install-test-tools if it is not installed\n%s", args, err, stderr.String())
	}
	return out
}

// public and secret are the armoured keys.
func (g gnupg) public(t *testing.T) string { return string(g.run(t, nil, "--armor", "--export")) }

func (g gnupg) secret(t *testing.T, passphrase string) string {
	return string(g.run(t, nil, "--armor", "--passphrase", passphrase, "--export-secret-keys"))
}

// with makes walden run with variables in its environment that the server does not have.
func (s *site) with(variables ...string) {
	s.t.Helper()
	for name, program := range map[string]*string{"raced": &s.raced, "plain": &s.plain} {
		script := filepath.Join(s.dir, name)
		text := fmt.Sprintf("#!/bin/sh\nexec env '%s' %s \"$@\"\n", strings.Join(variables, "' '"), *program)
		if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
			s.t.Fatal(err)
		}
		*program = script
	}
}

// cipher is a way of encrypting, with what is set to push and to fetch.
type cipher struct {
	name        string // in the manifest
	push, fetch []string
	environ     []string
}

const (
	passphrase = "open sesame, please"
	hexKey     = "6b2f7c0d9e1a4835f7c2b6a09d3e5f81726354a9b8c7d6e5f4a3b2c1d0e9f807"
)

// sodiumCipher has a key of its own.
func sodiumCipher() cipher {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	set := []string{"WALG_LIBSODIUM_KEY=" + hex.EncodeToString(key[:]), "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}
	return cipher{name: "libsodium", push: set, fetch: set}
}

// pgpCipher pushes with the public key only.
func pgpCipher(t *testing.T) cipher {
	t.Helper()
	g := newKeyRing(t, passphrase)
	return cipher{name: "openpgp", push: []string{"WALG_PGP_KEY=" + strings.ReplaceAll(g.public(t), "\n", `\n`)},
		fetch: []string{"WALG_PGP_KEY=" + g.secret(t, passphrase), "WALG_PGP_KEY_PASSPHRASE=" + passphrase}}
}

func gnupgCipher(t *testing.T) cipher {
	t.Helper()
	g := newKeyRing(t, passphrase)
	set := []string{"WALE_GPG_KEY_ID=archive@example.org", "WALG_PGP_KEY_PASSPHRASE=" + passphrase}
	return cipher{"openpgp", set, set, []string{"GNUPGHOME=" + g.home}}
}

func kmsCipher(t *testing.T) cipher {
	t.Helper()
	k := testenv.StartKMS(t)
	set := []string{"WALG_CSE_KMS_ID=" + k.KeyID, "WALG_CSE_KMS_REGION=" + k.Region, "WALDEN_CSE_KMS_ENDPOINT=" + k.Endpoint,
		"AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=unsaid"}
	return cipher{name: "aws-kms", push: set, fetch: set}
}

func TestEncryptedArchivesAreRestoredAndRecoveredAndShowNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cipher func(*testing.T) cipher
		onS3   bool
	}{
		"OpenPGP with a public key": {pgpCipher, false},
		"the key ring of GnuPG":     {gnupgCipher, false},
		"libsodium on S3":           {func(*testing.T) cipher { return sodiumCipher() }, true},
		"AWS KMS":                   {kmsCipher, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := test.cipher(t)
			var s *site
			if test.onS3 {
				s = newS3Site(t, append(c.push, "WALG_COMPRESSION_METHOD=none")...)
			} else {
				s = newSite(t, append(c.push, "WALG_COMPRESSION_METHOD=none")...)
			}
			if c.environ != nil {
				s.with(c.environ...)
			}
			var b [16]byte
			_, _ = rand.Read(b[:]) // never fails
			secret := "Zq" + hex.EncodeToString(b[:])
			p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: true, Settings: s.archiving()})
			p.Exec(t, "CREATE TABLE journal(id bigserial PRIMARY KEY, note text)",
				"INSERT INTO journal(note) SELECT '"+secret+"' || g FROM generate_series(1, 2000) AS g", "CHECKPOINT")
			s.must(p, "backup-push", p.DataDir)
			p.Exec(t, "INSERT INTO journal(note) SELECT '"+secret+"' || g FROM generate_series(1, 2000) AS g")
			s.archived(p)
			want := p.Query(t, digest)
			p.KillHard()

			if !test.onS3 {
				s.configure(append([]string{"WALG_FILE_PREFIX=" + s.archive, "WALG_COMPRESSION_METHOD=none"}, c.fetch...)...)
			}
			for key, content := range s.contents(t) {
				if shown(string(content), secret) {
					t.Errorf("%s shows what is in the table", key)
				}
				if strings.HasSuffix(key, "/walden_manifest.json") {
					var doc struct{ Encryption string }
					if err := json.Unmarshal(content, &doc); err != nil || doc.Encryption != c.name {
						t.Errorf("the manifest says encryption %q (%v)", doc.Encryption, err)
					}
				}
			}
			r := testenv.OpenPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{Settings: s.restoreSettings("recovery_target_action=promote")})
			r.WaitFor(t, "SELECT pg_is_in_recovery()", "f", commandLimit)
			if got := r.Query(t, digest); got != want {
				t.Errorf("after recovery the table is %s instead of %s", got, want)
			}
			checkPages(t, r, true)
		})
	}
}

// contents returns every object of the archive.
func (s *site) contents(t *testing.T) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for key := range s.objects(t) {
		if s.s3 == nil {
			found[key] = []byte(readAll(t, filepath.Join(s.archive, key)))
			continue
		}
		out, err := s.s3.Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s3Prefix + "/" + key)})
		if err != nil {
			t.Fatal(err)
		}
		if found[key], err = io.ReadAll(out.Body); err != nil {
			t.Fatal(err)
		}
		_ = out.Body.Close() // it was read to its end
	}
	return found
}

// walFiles are segments of the fixture full-lz4 as files that can be pushed.
func walFiles(t *testing.T) (names []string, dir string) {
	t.Helper()
	f := readFixture(t, "full-lz4")
	s := f.site(t).quick()
	dir = testenv.Scratch(t)
	names = []string{"00000001000000000000000A", "00000001000000000000000B"}
	for _, name := range names {
		s.must(nil, "wal-fetch", name, filepath.Join(dir, name))
	}
	return names, dir
}

// fetched is what wal-fetch makes of a file, nil if it fails. It fails without a trace, and never by calling the file absent.
func (s *site) fetched(name string) (content []byte, said string) {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "fetched")
	if err != nil {
		s.t.Fatal(err)
	}
	own(s.t, dir)
	file := filepath.Join(dir, "RECOVERYXLOG")
	r := s.walden(nil, "wal-fetch", name, file)
	content, err = os.ReadFile(file)
	switch {
	case r.code == 74:
		s.t.Errorf("wal-fetch calls %s absent:\n%s", name, r.stderr)
	case r.code == 0 && err != nil:
		s.t.Errorf("wal-fetch %s succeeds and brings nothing: %v", name, err)
	case r.code != 0 && err == nil:
		s.t.Errorf("wal-fetch %s fails and leaves a file of %d bytes:\n%s", name, len(content), r.stderr)
	case r.code != 0:
		return nil, r.stderr
	}
	return content, r.stderr
}

// changes are what can happen to an encrypted object: what was made of it by its description. unit is the length of the pieces
// that the cipher encrypts, in bytes as stored, and head that of what is before them.
func changes(object, other []byte, head, unit int, r *mathrand.Rand) map[string][]byte {
	first, second := head+unit, head+2*unit
	made := map[string][]byte{
		"empty":                     {},
		"its head only":             object[:head],
		"cut before its last byte":  object[:len(object)-1],
		"cut in the middle":         object[:len(object)/2],
		"cut after a piece":         object[:second],
		"cut before the last piece": object[:head+(len(object)-head-1)/unit*unit],
		"extended by a zero":        append(bytes.Clone(object), 0),
		"extended by its last unit": append(bytes.Clone(object), object[len(object)-unit:]...),
		"twice":                     slices.Concat(object, object),
		"followed by another":       slices.Concat(object, other),
		"pieces swapped":            slices.Concat(object[:head], object[first:second], object[head:first], object[second:]),
		"a piece left out":          slices.Concat(object[:first], object[second:]),
		"a piece twice":             slices.Concat(object[:second], object[first:]),
		"half of another":           slices.Concat(object[:second], other[min(second, len(other)):]),
		"the head of another":       slices.Concat(other[:head], object[head:]),
	}
	for i := range testenv.Pick(8, 400) {
		flipped := bytes.Clone(object)
		at := r.IntN(len(flipped))
		if i%2 == 0 {
			at = r.IntN(min(len(flipped), 2*head+200)) // where the keys, nonces and lengths are
		}
		flipped[at] ^= 1 << r.IntN(8)
		made[fmt.Sprintf("bit of byte %d flipped", at)] = flipped
		n := r.IntN(len(object))
		made[fmt.Sprintf("cut to %d bytes", n)] = object[:n]
	}
	return made
}

func TestChangedEncryptedWALIsAlwaysAnError(t *testing.T) {
	t.Parallel()
	names, dir := walFiles(t)
	segment, other := names[0], names[1]
	want := []byte(readAll(t, filepath.Join(dir, segment)))
	for name, test := range map[string]struct {
		cipher     func(*testing.T) cipher
		head, unit int
	}{
		"libsodium": {func(*testing.T) cipher { return sodiumCipher() }, 24, 8192 + 17},
		"OpenPGP":   {pgpCipher, 200, 8192},
		"AWS KMS":   {kmsCipher, 184, 16 + 64<<10 + 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := test.cipher(t)
			// Without compression nothing but the cipher notices.
			plain := append(slices.Clone(c.fetch), "WALG_COMPRESSION_METHOD=none")
			s := newSite(t, plain...).quick()
			for _, name := range names {
				s.must(nil, "wal-push", filepath.Join(dir, name))
			}
			if got, said := s.fetched(segment); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes come back:\n%s", len(got), said)
			}
			file := filepath.Join(s.archive, "wal_005", segment)
			object, foreign := []byte(readAll(t, file)), []byte(readAll(t, filepath.Join(s.archive, "wal_005", other)))
			for what, bad := range changes(object, foreign, test.head, test.unit, testenv.Rand(t)) {
				if err := os.WriteFile(file, bad, 0o644); err != nil {
					t.Fatal(err)
				}
				switch got, said := s.fetched(segment); {
				case got == nil:
					testenv.Figure(t, "encryption", "changed encrypted WAL, refused", 1)
				case bytes.Equal(got, want) && strings.Contains(what, "flipped"): // in what the format does not use
					testenv.Figure(t, "encryption", "changed encrypted WAL, restored exactly", 1)
				default:
					t.Errorf("%s: wal-fetch succeeds with %d bytes, which are not those that were archived:\n%s", what, len(got), said)
				}
			}
			// What was encrypted for one name is not taken for another: the cipher cannot know, the segment's own header does.
			if err := os.WriteFile(file, foreign, 0o644); err != nil {
				t.Fatal(err)
			}
			if got, _ := s.fetched(segment); got != nil {
				t.Error("another segment is taken for this one")
			}
		})
	}
}

func TestAChangedPartOfAnEncryptedBackupIsAlwaysAnError(t *testing.T) {
	t.Parallel()
	for name, layout := range map[string]struct{ head, unit int }{"full-lzma-sodium": {24, 8192 + 17}, "tablespace-brotli-pgp": {420, 8192}} {
		f := readFixture(t, name)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.site(t).quick()
			file, control := f.part(s, f.parts[0]), f.part(s, f.controlTar)
			object, foreign := []byte(readAll(t, file)), []byte(readAll(t, control))
			dir := filepath.Join(testenv.Scratch(t), "restored")
			into := f.into(t, dir, "LATEST")
			made := changes(object, foreign, layout.head, layout.unit, testenv.Rand(t))
			wanted := slices.Sorted(func(yield func(string) bool) {
				for what := range made {
					if !yield(what) {
						return
					}
				}
			})
			for i, what := range wanted {
				if !testenv.Full() && i%4 != 0 && !strings.HasPrefix(what, "cut a") && !strings.HasPrefix(what, "cut b") {
					continue // each is a restore
				}
				if err := os.WriteFile(file, made[what], 0o644); err != nil {
					t.Fatal(err)
				}
				r := s.walden(nil, into...)
				switch {
				case r.code != 0 && strings.Contains(r.stderr, f.parts[0]):
					testenv.Figure(t, "encryption", "changed encrypted parts, refused", 1)
				case r.code != 0:
					t.Errorf("%s: backup-fetch does not name the part:\n%s", what, r.stderr)
				case strings.Contains(what, "flipped"):
					f.checkRestored(t, dir)
					testenv.Figure(t, "encryption", "changed encrypted parts, restored exactly", 1)
				default:
					t.Errorf("%s: backup-fetch succeeds", what)
				}
				if r.code == 0 {
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
					into = f.into(t, dir, "LATEST")
				}
			}
		})
	}
}

func TestWhatWasPushedWithEarlierKeysStaysReadable(t *testing.T) {
	t.Parallel()
	names, dir := walFiles(t)
	first, second := names[0], names[1]
	s := newSite(t).quick()
	set := func(settings ...string) {
		t.Helper()
		s.configure(append([]string{"WALG_FILE_PREFIX=" + s.archive}, settings...)...)
	}
	same := func(name string) {
		t.Helper()
		if got, said := s.fetched(name); !bytes.Equal(got, []byte(readAll(t, filepath.Join(dir, name)))) {
			t.Errorf("%s is not what was pushed:\n%s", name, said)
		}
	}
	refused := func(name string, texts ...string) {
		t.Helper()
		got, said := s.fetched(name)
		if got != nil {
			t.Errorf("%s is read", name)
		}
		for _, text := range texts {
			if !strings.Contains(said, text) {
				t.Errorf("standard error does not say %q:\n%s", text, said)
			}
		}
	}
	removed := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := os.Remove(filepath.Join(s.archive, "wal_005", name+".lz4")); err != nil {
				t.Fatal(err)
			}
		}
	}
	sodium, newer, pgp, kms := sodiumCipher(), sodiumCipher(), pgpCipher(t), kmsCipher(t)
	sodiumKey := strings.TrimPrefix(sodium.push[0], "WALG_LIBSODIUM_KEY=")
	pgpSecret := strings.TrimPrefix(pgp.fetch[0], "WALG_PGP_KEY=")
	keys := filepath.Join(s.dir, "old.keys")
	if err := os.WriteFile(keys, []byte(hexKey+"\n"+sodiumKey+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		before, after []string
		old           []string // settings that make what was before readable
	}{
		{"another key of libsodium", sodium.push, newer.push, []string{"WALDEN_LIBSODIUM_OLD_KEYS=none:a-key-of-long-ago-that-is-text " + sodiumKey}},
		{"keys of libsodium in a file", sodium.push, newer.push, []string{"WALDEN_LIBSODIUM_OLD_KEYS_PATH=" + keys}},
		{"from libsodium to OpenPGP", sodium.push, pgp.fetch, []string{"WALDEN_LIBSODIUM_OLD_KEYS=hex:" + sodiumKey}},
		{"from OpenPGP to libsodium", pgp.push, newer.push, []string{"WALDEN_PGP_OLD_KEYS=" + pgpSecret, "WALDEN_PGP_OLD_KEYS_PASSPHRASE=" + passphrase}},
		{"from AWS KMS to libsodium", kms.push, newer.push, append([]string{"WALDEN_READ_CSE_KMS=true"}, kms.push[1:]...)},
		{"from libsodium to AWS KMS", sodium.push, kms.push, []string{"WALDEN_LIBSODIUM_OLD_KEYS=hex:" + sodiumKey}},
		{"from nothing to libsodium", nil, newer.push, []string{"WALDEN_READ_UNENCRYPTED=true"}},
		{"from nothing to OpenPGP", nil, pgp.fetch, []string{"WALDEN_READ_UNENCRYPTED=true"}},
	} {
		set(c.before...)
		s.must(nil, "wal-push", filepath.Join(dir, first))
		set(c.after...)
		refused(first, "cannot fetch "+first)
		set(append(slices.Clone(c.after), c.old...)...)
		s.must(nil, "wal-push", filepath.Join(dir, second))
		s.must(nil, "wal-push", filepath.Join(dir, first)) // compared with what is there
		same(first)
		same(second)
		set(c.after...) // what is new needs no old key
		same(second)
		if t.Failed() {
			t.Fatalf("%s", c.name)
		}
		// The old keys alone read and do not write.
		if c.before != nil {
			only := slices.Clone(c.old)
			if strings.Contains(c.name, "key of") || strings.Contains(c.name, "keys of") {
				only = append(only, "WALG_LIBSODIUM_KEY_TRANSFORM=hex")
			}
			set(only...)
			same(first)
			refused(second)
			removed(second)
			before := tree(t, s.archive)
			s.fails(nil, 1, []string{"earlier keys only", "nothing was sent", "hint: set the key"}, "wal-push", filepath.Join(dir, second))
			if after := tree(t, s.archive); !slices.Equal(after, before) {
				t.Errorf("%s: a refused push has changed the archive", c.name)
			}
			removed(first)
		} else {
			removed(first, second)
		}
	}
}

func TestAPublicKeyArchivesAgainWhatItHasArchived(t *testing.T) {
	t.Parallel()
	names, dir := walFiles(t)
	c := pgpCipher(t)
	s := newSite(t, c.push...).quick()
	file := filepath.Join(dir, names[0])
	s.must(nil, "wal-push", file)
	s.must(nil, "wal-push", file).expect(t, 0, "archived already with an equal fingerprint")
	changed := []byte(readAll(t, file))
	_, _ = rand.Read(changed[8192 : 8192+4096]) // never fails; does not compress
	other := filepath.Join(testenv.Scratch(t), names[0])
	if err := os.WriteFile(other, changed, 0o644); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s.archive)
	s.fails(nil, 1, []string{"archived already with different content", "hint: two clusters"}, "wal-push", other)
	if after := tree(t, s.archive); !slices.Equal(after, before) {
		t.Error("the refused push has changed the archive")
	}
	s.fails(nil, 1, []string{"cannot decrypt as WALG_PGP_KEY", "public one only", "hint: give the secret key"}, "wal-fetch", names[0], filepath.Join(s.dir, "x"))
	s.fails(nil, 1, []string{"cannot decrypt as WALG_PGP_KEY", "hint: give the secret key"}, "backup-fetch", filepath.Join(s.dir, "y"), "LATEST")

	// A server that was killed before it stored the file that it had claimed.
	object := filepath.Join(s.archive, "wal_005", names[0]+".lz4")
	content := readAll(t, object)
	if err := os.Remove(object); err != nil {
		t.Fatal(err)
	}
	s.fails(nil, 1, []string{"archived already with different content"}, "wal-push", other)
	s.must(nil, "wal-push", file)
	if len(readAll(t, object)) != len(content) {
		t.Error("the object has another size")
	}

	// A file that somebody else archived, of equal size.
	plain := newSite(t, append(slices.Clone(c.push), "WALG_COMPRESSION_METHOD=none")...).quick()
	plain.must(nil, "wal-push", file)
	plain.fails(nil, 1, []string{"archived already with different content"}, "wal-push", other)
	if err := os.Remove(filepath.Join(plain.archive, "walden_fingerprints", names[0]+".json")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, other} {
		plain.fails(nil, 1, []string{"cannot be compared", "hint: give the secret key for one run"}, "wal-push", path)
	}
	plain.configure(append(slices.Clone(c.fetch), "WALG_COMPRESSION_METHOD=none", "WALG_FILE_PREFIX="+plain.archive)...)
	plain.must(nil, "wal-push", file).expect(t, 0, "archived already with equal content")
	plain.fails(nil, 1, []string{"archived already with different content"}, "wal-push", other)

	// An archive of which nothing but the encrypted WAL says whose it is.
	if err := os.Remove(filepath.Join(s.archive, "walden_identity.json")); err != nil {
		t.Fatal(err)
	}
	s.fails(nil, 1, []string{"cannot tell which cluster", "hint: `walden archive accept PGDATA`"}, "wal-push", filepath.Join(dir, names[1]))
}

func TestKeysThatCannotEncryptAreRefusedBeforeAnythingIsSent(t *testing.T) {
	t.Parallel()
	names, dir := walFiles(t)
	file := filepath.Join(dir, names[0])
	ring := newKeyRing(t, "")
	ring.run(t, nil, "--passphrase", "", "--quick-generate-key", "signs@example.org", "ed25519", "sign", "never")
	signs := string(ring.run(t, nil, "--armor", "--export", "signs@example.org"))
	ring.run(t, nil, "--passphrase", "", "--faked-system-time", "20200101T000000", "--quick-generate-key", "past@example.org", "rsa2048", "encr", "1d")
	expired := string(ring.run(t, nil, "--armor", "--export", "past@example.org"))
	locked := newKeyRing(t, passphrase).secret(t, passphrase)
	kms := kmsCipher(t).push
	for _, c := range []struct {
		name     string
		settings []string
		says     []string
	}{
		{"an expired key", []string{"WALG_PGP_KEY=" + expired}, []string{"cannot encrypt as WALG_PGP_KEY ask for, so nothing was sent", "has expired"}},
		{"a key for signatures", []string{"WALG_PGP_KEY=" + signs}, []string{"so nothing was sent", "signatures only"}},
		{"one of two keys for signatures", []string{"WALG_PGP_KEY=" + ring.public(t)}, []string{"so nothing was sent"}},
		{"a wrong passphrase", []string{"WALG_PGP_KEY=" + locked, "WALG_PGP_KEY_PASSPHRASE=unsaid, unsaid"}, []string{"the passphrase is missing or wrong"}},
		{"no OpenPGP key", []string{"WALG_PGP_KEY=unsaid, unsaid"}, []string{"cannot use the key of WALG_PGP_KEY", "not an armoured OpenPGP key"}},
		{"a file that is missing", []string{"WALG_PGP_KEY_PATH=/no/such/key.asc"}, []string{"cannot read the key of WALG_PGP_KEY_PATH", "no such file"}},
		{"a short key", []string{"WALG_LIBSODIUM_KEY=unsaid, unsaid"}, []string{"cannot use the key of WALG_LIBSODIUM_KEY", "at least 25", "hint: "}},
		{"a key of libsodium in another form", []string{"WALG_LIBSODIUM_KEY=" + hexKey, "WALG_LIBSODIUM_KEY_TRANSFORM=base64"}, []string{"48 bytes"}},
		{"an earlier key that is none", []string{"WALG_LIBSODIUM_KEY=" + hexKey, "WALDEN_LIBSODIUM_OLD_KEYS=" + hexKey + " unsaid"}, []string{"cannot use key 2 of WALDEN_LIBSODIUM_OLD_KEYS"}},
		{"two keys", []string{"WALG_LIBSODIUM_KEY=" + hexKey, "WALG_PGP_KEY=unsaid"}, []string{"both WALG_PGP_KEY and WALG_LIBSODIUM_KEY are set", "hint: storing in the clear"}},
		{"a passphrase without a key", []string{"WALG_PGP_KEY_PASSPHRASE=unsaid"}, []string{"WALG_PGP_KEY_PASSPHRASE is set without an OpenPGP key"}},
		{"the KMS of Yandex Cloud", []string{"YC_CSE_KMS_KEY_ID=k"}, []string{"YC_CSE_KMS_KEY_ID is set", "encrypt with OpenPGP"}},
		{"a key ring without the key", []string{"WALG_GPG_KEY_ID=nobody@example.org"}, []string{`cannot get the OpenPGP key "nobody@example.org" from GnuPG`, "hint: "}},
		{"an unknown key of AWS KMS", append(slices.Clone(kms[1:]), "WALG_CSE_KMS_ID=alias/none"), []string{"so nothing was sent", "Alias alias/none is not found", "hint: see that the key exists"}},
		{"a KMS that is out of reach", append(slices.Clone(kms[:2]), "WALDEN_CSE_KMS_ENDPOINT=http://127.0.0.1:"+closedPort(t), "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=unsaid"),
			[]string{"so nothing was sent", "connection refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, c.settings...).quick()
			s.with("GNUPGHOME=" + ring.home)
			for _, args := range [][]string{{"wal-push", file}, {"backup-push", dir}} {
				r := s.fails(nil, 1, c.says, args...)
				if strings.Contains(r.stderr, "unsaid") || strings.Contains(r.stderr, hexKey) {
					t.Errorf("a key or a passphrase is shown:\n%s", r.stderr)
				}
			}
			if left := files(t, s.archive); len(left) > 0 {
				t.Errorf("the archive holds %v", left)
			}
		})
	}
}

func TestGnuPGDecryptsWhatWaldenArchived(t *testing.T) {
	t.Parallel()
	names, dir := walFiles(t)
	ring, colleague := newKeyRing(t, ""), newKeyRing(t, "")
	s := newSite(t, "WALG_COMPRESSION_METHOD=none", "WALG_PGP_KEY="+ring.public(t)+colleague.public(t)).quick()
	file := filepath.Join(dir, names[0])
	s.must(nil, "wal-push", file)
	object := []byte(readAll(t, filepath.Join(s.archive, "wal_005", names[0])))
	want := []byte(readAll(t, file))
	for _, g := range []gnupg{ring, colleague} {
		if got := g.run(t, object, "--decrypt"); !bytes.Equal(got, want) {
			t.Errorf("gpg --decrypt makes %d bytes of %d", len(got), len(want))
		}
	}
	// And the other way round, as scripts that grew around WAL-E have it.
	sealed := ring.run(t, want, "--trust-model", "always", "--encrypt", "-r", "archive@example.org")
	if err := os.WriteFile(filepath.Join(s.archive, "wal_005", names[1]), sealed, 0o644); err != nil {
		t.Fatal(err)
	}
	s.configure("WALG_FILE_PREFIX="+s.archive, "WALG_PGP_KEY="+ring.secret(t, ""))
	if got, said := s.fetched(names[0]); !bytes.Equal(got, want) {
		t.Errorf("%d bytes:\n%s", len(got), said)
	}
	if got, _ := s.fetched(names[1]); got != nil {
		t.Error("a segment is taken for the next one")
	}
}

func TestAGnuPGThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	if !testenv.Full() {
		return // it takes the limit, half a minute
	}
	names, dir := walFiles(t)
	bin := testenv.Scratch(t)
	if err := os.WriteFile(filepath.Join(bin, "gpg"), []byte("#!/bin/sh\nexec sleep 600\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "GPG_KEY_ID=archive@example.org")
	s.with("PATH=" + bin + ":" + os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	out, err := s.command(ctx, nil, "wal-push", filepath.Join(dir, names[0])).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "gpg took longer than 30s") {
		t.Errorf("%v\n%s", err, out)
	}
}
