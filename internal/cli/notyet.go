package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/hint"
)

// missing are commands of WAL-G that walden has not, with what to do instead. A job that is called by one of these names
// fails with this advice; nothing is passed over.
var missing = []struct{ name, instead string }{
	{"catchup-fetch", "take a backup and restore it where the standby is"},
	{"catchup-list", "take a backup and restore it where the standby is"},
	{"catchup-push", "take a backup and restore it where the standby is"},
	{"catchup-receive", "take a backup and restore it where the standby is"},
	{"catchup-send", "take a backup and restore it where the standby is"},
	{"pgbackrest", "restore repositories of pgBackRest with pgBackRest"},
	{"wal-receive", "archive with archive_command"},
	{"wal-restore", "restore a backup, or use pg_rewind with its --restore-target-wal"},
}

// notYet are the commands that only say that they are not there, whatever their arguments.
func (a *app) notYet() []*cobra.Command {
	var list []*cobra.Command
	for _, m := range missing {
		list = append(list, &cobra.Command{
			Use: m.name, Short: "Not in this version", Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
			RunE: func(*cobra.Command, []string) error {
				return hint.With(fmt.Errorf("cannot run %s: this version of walden does not have it", m.name), m.instead)
			},
		})
	}
	return list
}
