package pgdata

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestARecoveryTargetIsFoundWhereTheServerTakesItFrom(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ opts, auto, main, want string }{
		"nothing":                       {`/bin/postgres "-D" "DIR"`, "", "", ""},
		"no files at all":               {"", "", "", ""},
		"at start":                      {`/bin/postgres "-D" "DIR" "-c" "recovery_target=immediate"`, "", "", "recovery_target=immediate"},
		"at start, in one word":         {`/bin/postgres "-DDIR" "--recovery-target-name=a"`, "", "", "recovery_target_name=a"},
		"at start, joined":              {`/bin/postgres "-D" "DIR" "-crecovery_target_lsn=0/5"`, "", "", "recovery_target_lsn=0/5"},
		"by ALTER SYSTEM":               {`/bin/postgres "-D" "DIR"`, "recovery_target_time = '2026-01-01 00:00:00+00'\n", "", "recovery_target_time=2026-01-01 00:00:00+00"},
		"in postgresql.conf":            {`/bin/postgres "-D" "DIR"`, "", "\tRecovery_Target_XID 17 # comment\n", "recovery_target_xid=17"},
		"taken back at start":           {`/bin/postgres "-D" "DIR" "-c" "recovery_target="`, "recovery_target = 'immediate'\n", "", ""},
		"taken back by ALTER SYSTEM":    {`/bin/postgres "-D" "DIR"`, "recovery_target = ''\n", "recovery_target = 'immediate'\n", ""},
		"taken back below":              {`/bin/postgres "-D" "DIR"`, "", "recovery_target = 'immediate'\nrecovery_target = ''\n", ""},
		"another one taken back":        {`/bin/postgres "-D" "DIR"`, "recovery_target_name = ''\n", "recovery_target = 'immediate'\n", "recovery_target=immediate"},
		"a comment":                     {`/bin/postgres "-D" "DIR"`, "", "#recovery_target = 'immediate'\n # recovery_target = immediate\n", ""},
		"other settings":                {`/bin/postgres "-D" "DIR"`, "", "recovery_target_timeline = 'latest'\nrecovery_target_action = 'promote'\nrecovery_target_inclusive=on\n", ""},
		"a file that includes others":   {`/bin/postgres "-D" "DIR"`, "", "recovery_target = 'immediate'\ninclude_dir 'conf.d'\n", ""},
		"a configuration elsewhere":     {`/bin/postgres "-D" "DIR" "-c" "config_file=/etc/postgresql.conf"`, "", "recovery_target = 'immediate'\n", ""},
		"a directory elsewhere":         {`/bin/postgres "-D" "/etc/postgresql"`, "", "recovery_target = 'immediate'\n", ""},
		"elsewhere, and ALTER SYSTEM":   {`/bin/postgres "-D" "/etc/postgresql"`, "recovery_target = 'immediate'\n", "", "recovery_target=immediate"},
		"nobody knows how it was begun": {"", "", "recovery_target = 'immediate'\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range map[string]string{"postmaster.opts": c.opts, "postgresql.auto.conf": c.auto, "postgresql.conf": c.main} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := RecoveryTarget(dir)
			if err != nil || got != c.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
