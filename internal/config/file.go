package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/viper"
)

// mostFileBytes bounds what is read as a configuration file, so that a wrong name cannot take the memory.
const mostFileBytes = 1 << 20

// homeExtensions are tried for .walden in the home directory; for .walg all that viper has ever read are.
var homeExtensions = []string{"yaml", "yml", "json", "toml", "env"}

// fileError is a configuration file that cannot be used. Its text contains nothing of the file's contents.
type fileError struct {
	file  string
	line  int // 0 = the whole file
	cause error
	hint  string
}

func (e *fileError) Error() string {
	if e.line > 0 {
		return fmt.Sprintf("cannot read configuration file %s: line %d: %v", e.file, e.line, e.cause)
	}
	return fmt.Sprintf("cannot read configuration file %s: %v", e.file, e.cause)
}

func (e *fileError) Unwrap() error { return e.cause }

func (e *fileError) Hint() string { return e.hint }

// readFile reads the file that is named, or the first that is found, into a map from keys as written to values as the
// format has them. Without any file the name is "".
func readFile(named, home, systemFile string) (file string, content map[string]any, err error) {
	if named != "" {
		data, err := readBounded(named)
		if err != nil {
			return "", nil, &fileError{file: named, cause: plainCause(err),
				hint: "a file that --config, WALDEN_CONFIG_PATH or WALG_CONFIG_PATH names must exist and be readable"}
		}
		content, err := decode(named, data)
		return named, content, err
	}
	for _, candidate := range candidates(home, systemFile) {
		data, err := readBounded(candidate)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, &fileError{file: candidate, cause: plainCause(err)}
		}
		content, err := decode(candidate, data)
		return candidate, content, err
	}
	return "", nil, nil
}

func candidates(home, systemFile string) []string {
	var files []string
	if home != "" {
		for _, ext := range homeExtensions {
			files = append(files, filepath.Join(home, ".walden."+ext))
		}
		for _, ext := range viper.SupportedExts {
			files = append(files, filepath.Join(home, ".walg."+ext))
		}
	}
	return append(files, systemFile)
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > mostFileBytes {
		return nil, fmt.Errorf("it is larger than %s", formatSize(mostFileBytes))
	}
	return data, nil
}

// plainCause drops operation and name from what the os package reports: fileError has them.
func plainCause(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// decode parses a configuration file in the format that its extension names.
func decode(file string, data []byte) (map[string]any, error) {
	format := strings.ToLower(strings.TrimPrefix(filepath.Ext(file), "."))
	decoder, err := viper.NewCodecRegistry().Decoder(format)
	if err != nil {
		return nil, &fileError{file: file, cause: fmt.Errorf("the format %q is not supported", format),
			hint: "write it as .yaml, .yml, .json, .toml or .env (NAME=value lines)"}
	}
	content := make(map[string]any)
	if err := decoder.Decode(data, content); err != nil {
		line, cause := explain(decoder, format, data, err)
		return nil, &fileError{file: file, line: line, cause: cause}
	}
	return content, nil
}

var (
	yamlLine = regexp.MustCompile(`line (\d+)(: )?`)
	quoted   = regexp.MustCompile("(?s)[`'\"].*[`'\"]")
)

// explain finds the line of a syntax error and a cause without any of the file's contents, which the decoders quote:
// they may be secrets.
func explain(decoder viper.Decoder, format string, data []byte, err error) (line int, cause error) {
	var (
		positioned interface{ Position() (row, column int) } // go-toml
		syntax     *json.SyntaxError
		mistyped   *json.UnmarshalTypeError
	)
	switch {
	case errors.As(err, &positioned):
		line, _ = positioned.Position()
	case errors.As(err, &syntax):
		line = lineOf(data, syntax.Offset)
	case errors.As(err, &mistyped):
		return lineOf(data, mistyped.Offset), errors.New("expected an object with the settings as its members")
	case format == "env" || format == "dotenv":
		return envLine(decoder, data), errors.New("expected NAME=value, with closed quotes")
	}
	text := withoutContents(quoted.ReplaceAllString(err.Error(), "…"), data)
	if match := yamlLine.FindStringSubmatch(text); line == 0 && match != nil {
		line, _ = strconv.Atoi(match[1])
		text = strings.Replace(text, match[0], "", 1)
	}
	if line == 0 {
		line = lineOf(data, int64(firstUnreadable(data)))
	}
	return line, errors.New(strings.Join(strings.Fields(text), " "))
}

// withoutContents takes the words out of a decoder's message that stand in the file, too: names and values that it did not
// quote. Short ones, which cannot be secrets of any worth, stay, because those of the decoder's own are among them.
func withoutContents(text string, data []byte) string {
	const short = 6
	words := strings.Fields(text)
	for i, word := range words {
		if bare := strings.Trim(word, ".,:;()[]{}<>"); len(bare) >= short && bytes.Contains(data, []byte(bare)) {
			words[i] = strings.Replace(word, bare, "…", 1)
		}
	}
	return strings.Join(words, " ")
}

func lineOf(data []byte, offset int64) int {
	offset = min(max(offset, 0), int64(len(data)))
	return 1 + bytes.Count(data[:offset], []byte("\n"))
}

// firstUnreadable returns the offset of the first byte that no text file contains: the errors about these have no line.
func firstUnreadable(data []byte) int {
	for i, r := range string(data) {
		if r == '\uFFFD' || r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7F {
			return i
		}
	}
	return 0
}

// envLine returns the line at which the first statement stands that cannot be read. A statement has more than one line
// if a quoted value has.
func envLine(decoder viper.Decoder, data []byte) int {
	const longest = 200 // lines of one value; a PGP key has fewer
	lines := bytes.SplitAfter(data, []byte("\n"))
	for start := 0; start < len(lines); {
		end := start + 1
		for decoder.Decode(bytes.Join(lines[start:end], nil), map[string]any{}) != nil {
			if end++; end > len(lines) || end > start+longest {
				return start + 1
			}
		}
		start = end
	}
	return len(lines)
}

// maxExact is the largest float64 below which every whole number is exact; JSON has no other numbers.
const maxExact = 1 << 53

var errUnquoted = errors.New("expected text: put the value in quotes")

// fileText turns a value of a configuration file into the text that the environment would hold.
func fileText(d Definition, value any) (string, error) {
	if value == nil {
		return "", nil
	}
	if text, ok := value.(string); ok { // of a map, too: in a .env file everything is text
		return text, nil
	}
	if d.Type == Map || d.Type == JSON {
		text, err := json.Marshal(value)
		if err != nil {
			return "", errors.New("expected a map whose names and values are text")
		}
		return string(text), nil
	}
	// What is not quoted has been read as something else, and 0755 or 1e3 does not read back as written. For a password
	// that would be a riddle.
	if d.Secret {
		return "", errUnquoted
	}
	if slices.Contains([]Type{Text, Path, URL, Choice}, d.Type) {
		switch value.(type) {
		case int, int64, uint64:
		case float64:
			if _, isWhole := wholeNumber(value); !isWhole {
				return "", errUnquoted
			}
		default:
			return "", errUnquoted
		}
	}
	if text, ok := wholeNumber(value); ok {
		return text, nil
	}
	if b, ok := value.(bool); ok {
		return strconv.FormatBool(b), nil
	}
	return "", invalid(d.Valid())
}

func wholeNumber(value any) (text string, ok bool) {
	switch n := value.(type) {
	case int:
		return strconv.Itoa(n), true
	case int64:
		return strconv.FormatInt(n, 10), true
	case uint64:
		return strconv.FormatUint(n, 10), true
	case float64:
		return strconv.FormatFloat(n, 'f', -1, 64), n == math.Trunc(n) && math.Abs(n) < maxExact
	}
	return "", false
}

// parseMap reads a map, or a list of maps, from YAML, of which JSON is a part.
func parseMap(text string) (map[string]any, error) {
	decoder, err := viper.NewCodecRegistry().Decoder("yaml")
	if err != nil {
		return nil, err
	}
	// Indented below a name, text can be anything that YAML has, and cannot end the document.
	document := make(map[string]any)
	if err := decoder.Decode([]byte("value:\n "+strings.ReplaceAll(text, "\n", "\n ")), document); err != nil {
		return nil, err
	}
	items, isList := document["value"].([]any)
	if !isList {
		items = []any{document["value"]}
	}
	result := make(map[string]any)
	for _, item := range items {
		m, ok := item.(map[string]any)
		if !ok {
			return nil, errors.New("neither a map nor a list of maps")
		}
		maps.Copy(result, m)
	}
	return result, nil
}
