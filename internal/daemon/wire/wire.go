// Package wire is the language of walden's daemon and of WAL-G's (WAL-G format, "Daemon protocol"): messages over a Unix stream socket, each answered
// by one byte. A message is its type, its whole length as 16 bits with the high byte first, and its body. A [Push] has a file's name as its body;
// a [Fetch] has arguments: their number in one byte, then each with its length in 16 bits before it.
//
// The package imports nothing, since the client begins before almost everything else in the program is initialised.
package wire

// Types of messages.
const (
	Check = 'C' // is anyone there? The body may be anything; see Place.
	Push  = 'F' // archive the file of that name in pg_wal
	Fetch = 'f' // fetch a file: its name, and where to
)

// Answers.
const (
	Done   = 'O'
	Failed = 'E'
	Absent = 'N' // the archive does not hold the file
)

const (
	// HeaderSize is the length of what comes before the body, in bytes.
	HeaderSize = 3
	// MaxBody is the length of the longest body that has a meaning, in bytes: a name and a path.
	MaxBody = 1 + 2*(2+4096)
	// FetchArguments is the number of arguments of Fetch.
	FetchArguments = 2
)

// Append appends a message; false if the body is longer than MaxBody.
func Append(b []byte, kind byte, body []byte) ([]byte, bool) {
	if len(body) > MaxBody {
		return b, false
	}
	b = append16(append(b, kind), len(body)+HeaderSize)
	return append(b, body...), true
}

// ParseHeader takes the beginning of a message apart: its type and the length of its body in bytes. False means that no message begins like that.
func ParseHeader(b [HeaderSize]byte) (kind byte, body int, ok bool) {
	body = int(b[1])<<8 + int(b[2]) - HeaderSize
	return b[0], body, body >= 0 && body <= MaxBody
}

// AppendArguments appends the body that holds arguments; false if one is too long.
func AppendArguments(b []byte, arguments ...string) ([]byte, bool) {
	if len(arguments) > 0xff {
		return b, false
	}
	b = append(b, byte(len(arguments)))
	for _, a := range arguments {
		if len(a) > MaxBody {
			return b, false
		}
		b = append(append16(b, len(a)), a...)
	}
	return b, true
}

// ParseArguments takes a body with arguments apart; false if it is not exactly that.
func ParseArguments(body []byte) ([]string, bool) {
	if len(body) == 0 {
		return nil, false
	}
	arguments := make([]string, 0, FetchArguments)
	rest := body[1:]
	for range body[0] {
		if len(rest) < 2 {
			return nil, false
		}
		n := int(rest[0])<<8 + int(rest[1])
		rest = rest[2:]
		if len(rest) < n {
			return nil, false
		}
		arguments = append(arguments, string(rest[:n]))
		rest = rest[n:]
	}
	return arguments, len(rest) == 0
}

func append16(b []byte, n int) []byte { return append(b, byte(n>>8), byte(n)) }

// Place is the body of walden's own [Check]: which directory pg_wal is where the client runs, by device and inode. The protocol names no
// cluster; by this a daemon refuses whoever was sent to the socket of another cluster's.
type Place struct{ Device, Inode uint64 }

const placeLen = len(placeMark) + 16

const placeMark = "walden pg_wal "

// Append appends the body.
func (p Place) Append(b []byte) []byte {
	b = append(b, placeMark...)
	for _, n := range [...]uint64{p.Device, p.Inode} {
		for shift := 56; shift >= 0; shift -= 8 {
			b = append(b, byte(n>>shift))
		}
	}
	return b
}

// ParsePlace reads it; false if the body is none: of another client.
func ParsePlace(body []byte) (Place, bool) {
	if len(body) != placeLen || string(body[:len(placeMark)]) != placeMark {
		return Place{}, false
	}
	var n [2]uint64
	for i, c := range body[len(placeMark):] {
		n[i/8] = n[i/8]<<8 | uint64(c)
	}
	return Place{n[0], n[1]}, true
}
