package wal

import "errors"

// EndOfLog tells where the log ends of which an error says that it just ends ([ErrEnds]).
func EndOfLog(err error) (LSN, bool) {
	var end *endError
	if errors.Is(err, ErrEnds) && errors.As(err, &end) {
		return end.lsn, true
	}
	return 0, false
}
