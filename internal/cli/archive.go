package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

func (a *app) archive() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "archive COMMAND",
		Short: "The archive and the cluster that it belongs to",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage(cmd, "cannot run archive: it needs one of the commands window, repair, identity and accept")
		},
	}
	cmd.AddCommand(a.archiveWindow(), a.archiveRepair(), a.archiveIdentity(), a.archiveAccept())
	return cmd
}

func (a *app) archiveIdentity() *cobra.Command {
	return &cobra.Command{
		Use:   "identity",
		Short: "Show which cluster the archive belongs to",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.archiveCatalog(cmd)
			if err != nil {
				return err
			}
			id, err := c.Identity(cmd.Context())
			if errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintf(a.screen, "%s has no identity yet: it gets one at the first push\n", c)
				return nil
			}
			if err != nil {
				return err
			}
			a.printIdentity(id)
			return nil
		},
	}
}

func (a *app) archiveAccept() *cobra.Command {
	return &cobra.Command{
		Use:   "accept PGDATA",
		Short: "Let the cluster in PGDATA take over the archive (after pg_upgrade or a planned replacement)",
		Long: "Every push checks that the archive belongs to the pushing cluster. After pg_upgrade, or when a cluster replaces another\n" +
			"one on purpose, this command records the new cluster, once. Backups and WAL of the old one stay.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			control, _, err := pgdata.ReadControl(args[0])
			if err != nil {
				return err
			}
			major, err := pgdata.ReadMajor(args[0])
			if err != nil {
				return err
			}
			c, err := a.archiveCatalog(cmd)
			if err != nil {
				return err
			}
			id, err := c.Accept(cmd.Context(), catalog.Cluster{
				SystemIdentifier: control.SystemIdentifier, Major: major, SegmentSize: control.WALSegmentSize,
			})
			if err != nil {
				return err
			}
			a.printIdentity(id)
			return nil
		},
	}
}

// archiveCatalog reads the settings and opens the archive, to look at what is there.
func (a *app) archiveCatalog(cmd *cobra.Command) (*catalog.Catalog, error) {
	if err := a.load(false); err != nil {
		return nil, err
	}
	return a.checkedCatalog(cmd.Context(), toLook)
}

// checkedCatalog opens the archive and makes sure that it is there.
func (a *app) checkedCatalog(ctx context.Context, needed use) (*catalog.Catalog, error) {
	c, _, err := a.openCatalog(ctx, needed)
	if err != nil {
		return nil, err
	}
	return c, c.Check(ctx)
}

// lookAtAll opens the archive and looks at all that it holds.
func (a *app) lookAtAll(ctx context.Context, needed use) (*catalog.Catalog, catalog.Inventory, error) {
	c, err := a.checkedCatalog(ctx, needed)
	if err != nil {
		return nil, catalog.Inventory{}, err
	}
	inv, err := a.inventory(ctx, c)
	return c, inv, err
}

// inventory looks at all that the archive holds.
func (a *app) inventory(ctx context.Context, c *catalog.Catalog) (catalog.Inventory, error) {
	inv, err := c.Inventory(ctx)
	for timeline, err := range inv.Unread {
		a.log.Warn("the history of a timeline cannot be read", "timeline", timeline, "error", err)
	}
	return inv, err
}

func (a *app) printIdentity(id catalog.Identity) {
	fmt.Fprintf(a.process.Stdout, "current: %s, since %s\n", id.Current, id.Since.Format(time.RFC3339))
	for _, p := range id.Previous {
		fmt.Fprintf(a.process.Stdout, "previous: %s\n", p)
	}
}
