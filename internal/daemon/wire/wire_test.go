package wire

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes that WAL-G's daemon was observed to understand (WAL-G format, "Daemon protocol").
func TestMessagesAreThoseOfWALG(t *testing.T) {
	t.Parallel()
	const segment = "000000010000000000000006"
	for name, c := range map[string]struct {
		kind byte
		body func() []byte
		want string
	}{
		"check":             {Check, func() []byte { return nil }, "430003"},
		"check with a body": {Check, func() []byte { return []byte("CHECK") }, "430008434845434b"},
		"wal-push":          {Push, func() []byte { return []byte(segment) }, "46001b" + hex.EncodeToString([]byte(segment))},
		"wal-fetch": {Fetch, func() []byte {
			b, _ := AppendArguments(nil, segment, "pg_wal/RECOVERYXLOG")
			return b
		}, "660033020018" + hex.EncodeToString([]byte(segment)) + "0013" + hex.EncodeToString([]byte("pg_wal/RECOVERYXLOG"))},
	} {
		got, ok := Append(nil, c.kind, c.body())
		if !ok || !bytes.Equal(got, unhex(t, c.want)) {
			t.Errorf("%s: %x, want %s", name, got, c.want)
		}
		kind, n, ok := ParseHeader([HeaderSize]byte(got))
		if !ok || kind != c.kind || n != len(got)-HeaderSize {
			t.Errorf("%s: read as %q with a body of %d", name, kind, n)
		}
	}
}

func TestWhatIsNoMessageIsNotUnderstood(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"460000", "460002", "46ffff"} {
		if _, _, ok := ParseHeader([HeaderSize]byte(unhex(t, s))); ok {
			t.Errorf("%s is taken for the beginning of a message", s)
		}
	}
	for _, s := range []string{"", "01", "0100", "010001", "0200014100", "02000141", "01000141ff"} {
		if a, ok := ParseArguments(unhex(t, s)); ok {
			t.Errorf("%s is taken for arguments: %q", s, a)
		}
	}
	if _, ok := Append(nil, Push, make([]byte, MaxBody+1)); ok {
		t.Error("a message that is too long is made")
	}
	if _, ok := AppendArguments(nil, string(make([]byte, MaxBody+1))); ok {
		t.Error("an argument that is too long is taken")
	}
}

func TestAPlaceComesBackAsItWas(t *testing.T) {
	t.Parallel()
	want := Place{0x0102030405060708, 1<<64 - 2}
	if got, ok := ParsePlace(want.Append(nil)); !ok || got != want {
		t.Errorf("%v came back as %v", want, got)
	}
	for _, b := range []string{"", "CHECK", placeMark, placeMark + "123456789012345"} {
		if _, ok := ParsePlace([]byte(b)); ok {
			t.Errorf("%q is taken for a place", b)
		}
	}
}

func FuzzArguments(f *testing.F) {
	for _, s := range []string{"", "00", "0100014101", "0200014100014200", "02000000", "ff0000"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		arguments, ok := ParseArguments(body)
		if !ok {
			return
		}
		if again, ok := AppendArguments(nil, arguments...); ok && !bytes.Equal(again, body) {
			t.Errorf("%x holds %q, which is written as %x", body, arguments, again)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("C\x00\x03"))
	f.Add([]byte("F\x00\x1b"))
	f.Add([]byte("\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		kind, n, ok := ParseHeader([HeaderSize]byte(b))
		if !ok {
			return
		}
		if again, ok := Append(nil, kind, make([]byte, n)); !ok || !slices.Equal(again[:HeaderSize], b[:HeaderSize]) {
			t.Errorf("%x is read as %d and %d", b[:HeaderSize], kind, n)
		}
	})
}
