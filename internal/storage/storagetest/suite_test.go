package storagetest

import (
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage"
)

func TestMemoryStoreKeepsThePromises(t *testing.T) {
	t.Parallel()
	Run(t, func(*testing.T) storage.Store { return NewMemory() }, Options{ListKeys: 10_001})
}

func TestFaultStoreWithoutRulesKeepsThePromises(t *testing.T) {
	t.Parallel()
	Run(t, func(*testing.T) storage.Store { return NewFault(NewMemory()) }, Options{})
}
