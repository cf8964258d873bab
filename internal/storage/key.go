package storage

import (
	"fmt"
	"strings"
)

// CheckKey returns a permanent error if key breaks the rules that [Store] sets for keys. Every backend asks it
// before anything else, so that a key means the same object everywhere.
func CheckKey(key string) error {
	if key == "" {
		return Permanent(fmt.Errorf("the key is empty"))
	}
	if strings.IndexByte(key, 0) >= 0 {
		return Permanent(fmt.Errorf("key %q contains a zero byte", key))
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || element == "." || element == ".." {
			return Permanent(fmt.Errorf("key %q contains the path element %q", key, element))
		}
	}
	return nil
}

// CheckDir is [CheckKey] for the argument of [Store.List]: "" or a key followed by "/".
func CheckDir(dir string) error {
	if dir == "" {
		return nil
	}
	key, ok := strings.CutSuffix(dir, "/")
	if !ok {
		return Permanent(fmt.Errorf("directory %q does not end in a slash", dir))
	}
	return CheckKey(key)
}
