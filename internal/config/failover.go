package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// storageGroups are the headings under which settings say how a storage is reached.
var storageGroups = []string{groupStorage, groupS3, groupGCS, groupAzure, groupSwift, groupSSH, groupOSS}

// FailoverStorage returns the settings with which the failover storage of the name given is used: those in its map; what is not there
// and says how a storage is reached is not set, unless its name is one of the service's own, such as AWS_REGION, which are taken from
// beside the map; everything that concerns no storage is as it is for the primary (WAL-G format, settings, "Failover").
func (c Config) FailoverStorage(name string) (Config, error) {
	if c.failover == nil {
		return Config{}, notAFailoverStorage(name)
	}
	return c.failover(name)
}

func notAFailoverStorage(name string) error {
	return fmt.Errorf("cannot use the storage %q: %s does not name it", name, failoverStorages)
}

// failoverMaps are the settings of the failover storages as they were given, with all others beside them.
type failoverMaps struct {
	file   string
	given  [][]given                 // for each definition
	byName map[string]map[string]any // the storages' settings
}

func (m *failoverMaps) load(name string) (Config, error) {
	own, ok := m.byName[name]
	if !ok {
		return Config{}, notAFailoverStorage(name)
	}
	l := newLoader()
	l.config.File = m.file
	for i, d := range l.definitions {
		for _, g := range m.given[i] {
			if !slices.Contains(storageGroups, d.Group) || d.Type != Prefix && !slices.ContainsFunc(ownPrefixes, func(p string) bool { return strings.HasPrefix(g.name, p) }) {
				l.given[i] = append(l.given[i], g)
			}
		}
	}
	cleared := map[int]bool{}
	for _, key := range slices.Sorted(maps.Keys(own)) {
		setting := strings.ToUpper(key)
		at, known := l.known[setting]
		if !known {
			l.warning("%s in the storage %q of file %s is not known%s", shorten(setting), name, m.file, l.didYouMean(setting))
			continue
		}
		text, err := fileText(l.definitions[at.definition], own[key])
		if err != nil {
			l.fault("cannot use %s from the storage %q of file %s: %w", setting, name, m.file, err)
			continue
		}
		if !cleared[at.definition] { // what stands in the map wins over everything beside it
			l.given[at.definition], cleared[at.definition] = nil, true
		}
		l.add(given{name: setting, text: text, layer: fromFile, file: m.file})
	}
	l.fill()
	l.checkTogether()
	if len(l.faults) > 0 {
		return l.config, l.faults
	}
	return l.config, nil
}

// keepFailover keeps the maps of the failover storages, for those who open one.
func (l *loader) keepFailover() {
	text, ok := l.winner(l.known[failoverStorages].definition)
	if !ok {
		return
	}
	all, err := parseMap(text.text)
	if err != nil {
		return // reported when the field was filled
	}
	m := &failoverMaps{l.config.File, l.given, map[string]map[string]any{}}
	for name, value := range all {
		switch settings, isMap := value.(map[string]any); {
		case name == "default":
			l.fault("cannot use %s: the name \"default\" is that of the primary storage", failoverStorages)
		case !isMap:
			l.fault("cannot use %s: %q is not a map of settings", failoverStorages, name)
		default:
			m.byName[name] = settings
		}
	}
	if len(m.byName) > 0 {
		l.config.failover = m.load // a function, so that nothing of the maps is printed with a Config: they hold secrets
		l.warning("%s: the commands of `st` alone use failover storages; WAL and backups are pushed to the primary storage and fetched from it", failoverStorages)
	}
}
