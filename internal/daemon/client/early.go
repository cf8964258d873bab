package client

import "syscall"

// init is the one exception to the rule that there are no such functions, and that only main ends the process: see the package's comment.
func init() {
	if r, ok := requestOf(arguments()); ok {
		syscall.Exit(r.Run())
	}
}

// requestOf reads the arguments of a process, its name first. False leaves it to the ordinary command, which knows more words.
func requestOf(args []string) (Request, bool) {
	if len(args) == 0 {
		return Request{}, false
	}
	if _, called := split(args[0]); called == Called {
		return Parse(args[1:])
	}
	if len(args) < 2 || args[1] != Command {
		return Request{}, false
	}
	return Parse(args[2:])
}

// argumentsLimit bounds what is read of them, in bytes; the client's are shorter.
const argumentsLimit = 16 << 10

// arguments are those of this process. The package that holds them is not initialised yet.
func arguments() []string {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = syscall.Close(fd) }() // nothing was written
	b := make([]byte, argumentsLimit)
	n, err := syscall.Read(fd, b)
	if err != nil || n <= 0 || n == len(b) {
		return nil
	}
	var args []string
	start := 0
	for i, c := range b[:n] { // each ends with a zero
		if c == 0 {
			args = append(args, string(b[start:i]))
			start = i + 1
		}
	}
	return args
}
