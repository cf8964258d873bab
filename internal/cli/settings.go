package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) settings() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:     "settings",
		Aliases: []string{"flags"},
		Short:   "Show the settings with their values and where these come from",
		Long: "Shows the settings that are set, or with --all every setting there is: value (secrets masked), source (flag, environment,\n" +
			"file, default). Every setting can be given as a flag, too: WALG_DELTA_MAX_STEPS as --walg-delta-max-steps.",
		Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			faults := a.load(false) // shown after the settings, which help to find them
			if asJSON {
				type setting struct {
					Name   string `json:"name"`
					Value  string `json:"value"`
					Source string `json:"source"`
					Effect string `json:"without_effect,omitempty"`
				}
				list := []setting{}
				for _, v := range a.config.Settings() {
					if all || v.Source != "default" {
						list = append(list, setting{v.Name, v.Value, v.Source, v.Effect})
					}
				}
				if err := json.NewEncoder(a.process.Stdout).Encode(list); err != nil {
					return err
				}
				return faults
			}
			tw := tabwriter.NewWriter(a.process.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "setting\tvalue\tsource")
			for _, v := range a.config.Settings() {
				if all || v.Source != "default" {
					fmt.Fprintf(tw, "%s\t%s\t%s\n", v.Name, v.Value, v.Source)
				}
			}
			if err := tw.Flush(); err != nil {
				return err
			}
			return faults
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	cmd.Flags().BoolVar(&all, "all", false, "with the settings that have their defaults")
	return cmd
}
