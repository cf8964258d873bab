package transfer

import (
	"context"
	"errors"
	"fmt"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
)

// ObjectsOptions choose what [CopyObjects] copies, and how.
type ObjectsOptions struct {
	Prefix           string // an object, or a folder with all that is below it; "" is everything
	Decrypt, Encrypt bool   // with the keys of the source, with those of the destination
}

// CopyObjects copies objects whatever they are for, without an order. What is there already has to be of the same content. Sentinels
// come last all the same.
func CopyObjects(ctx context.Context, d Deps, o ObjectsOptions) (Report, error) {
	c := newCarrier(d)
	c.off, c.on = repo.Layers{Encrypted: o.Decrypt}, repo.Layers{Encrypted: o.Encrypt}
	found, err := Under(ctx, d.From, o.Prefix)
	if err != nil {
		return c.report, err
	}
	var first, last []object
	var keys []string
	total := int64(0)
	for _, f := range found {
		one := object{catalog.StoredObject{Key: f.Key, Size: f.Size}, sameContent}
		if catalog.IsSentinel(f.Key) {
			last = append(last, one)
		} else {
			first = append(first, one)
		}
		keys = append(keys, f.Key)
		total += f.Size
	}
	if err := c.goTogether(ctx, found); err != nil {
		return c.report, err
	}
	there, err := c.sizes(ctx, keys)
	if err != nil {
		return c.report, err
	}
	c.Progress.Begin(total)
	defer c.Progress.End()
	for _, objects := range [][]object{first, last} {
		if err := c.carryAll(ctx, objects, there); err != nil {
			if o.Encrypt && errors.Is(err, catalog.ErrNoSecretKey) {
				err = hint.With(err, "what is there already was encrypted for somebody else's eyes and cannot be compared; remove it, or choose another place")
			}
			return c.report, fmt.Errorf("%w (%d objects were copied before)", err, c.report.Copied.Objects)
		}
	}
	return c.report, nil
}
