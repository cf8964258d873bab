package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) backupMark() *cobra.Command {
	var impermanent bool
	cmd := &cobra.Command{
		Use:   "backup-mark NAME",
		Short: "Mark a backup as permanent, so that it is not deleted",
		Long: "Marks the backup, and all that it is based on, as permanent: `delete` keeps them with their WAL from start to end. With --impermanent the\n" +
			"mark is taken from this one backup, unless a permanent one is based on it.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.archiveCatalog(cmd)
			if err != nil {
				return err
			}
			changed, err := c.Mark(cmd.Context(), args[0], !impermanent)
			for _, name := range changed {
				a.log.Info("marked backup", "backup", name, "permanent", !impermanent)
			}
			if err == nil && len(changed) == 0 {
				a.log.Warn("the backup is marked so already", "backup", args[0], "permanent", !impermanent)
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&impermanent, "impermanent", "i", false, "take the mark away")
	return cmd
}
