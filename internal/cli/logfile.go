package cli

import (
	"os"
	"sync"
)

// logFile is a file that log lines are appended to, and that can be opened again under its name when logrotate has renamed it.
type logFile struct {
	mu   sync.Mutex
	file *os.File
}

func openLogFile(name string) (*logFile, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	return &logFile{file: f}, nil
}

// Write implements io.Writer.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Write(b)
}

// reopen goes on in the file that has the name now, or on error in the one that is open.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next, err := openLogFile(l.file.Name())
	if err != nil {
		return err
	}
	old := l.file
	l.file = next.file
	return old.Close()
}

// Close implements io.Closer.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
