"""Training, validation and test rows of data that come as one."""

from collections.abc import Mapping, Sequence

import numpy as np

from deq_lightning.data.base import Size, drawn, samples_in
from deq_lightning.data.errors import SplitError
from deq_lightning.data.tables.reading import Column, shown

SPLITS = ("train", "val", "test")
LEAST_ROWS = 3  # of a class: one for each split


def split(
    count: int,
    sizes: Mapping[str, Size],
    seed: int,
    labels: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Return the rows of each split, ascending; what the splits of `sizes` leave trains.

    Args:
        count: rows in all.
        sizes: of the other splits, by their names.
        seed: fixes the choice, 0 or more.
        labels: (rows,) class of each row, from 0: every split holds the classes in the same proportions. None: any
            rows.
        names: of the classes.

    Raises:
        SplitError: if a split would be empty or without one of the classes.
    """
    counts = {name: samples_in(size, count) for name, size in sizes.items()}
    _check_counts(count, counts, labels, names)
    return drawn(count, counts, seed, labels)


def _check_counts(
    count: int, counts: Mapping[str, int], labels: np.ndarray | None, names: Sequence[str] | None
) -> None:
    least, unit = 1, "rows"
    if labels is not None:
        of_class = np.bincount(labels)
        least, unit = len(of_class), "rows, one of each class"
        if of_class.min() < LEAST_ROWS and counts:
            rare = int(of_class.argmin())
            raise SplitError(
                f"every class must have {LEAST_ROWS} rows or more, one for each split, "
                f"got {of_class[rare]} of class `{names[rare] if names else rare}`. Add some, or leave it out."
            )
    for name, size in counts.items():
        if size < least:
            raise SplitError(f"`{name}_size` must stand for {least} {unit}, or more, got {size} of {count}.")
    if count - sum(counts.values()) < least:
        sizes = " + ".join(f"`{name}_size`" for name in counts) or "the data"
        raise SplitError(
            f"{sizes} must leave {least} {unit}, or more, to train on, got {sum(counts.values())} of {count}."
        )


def named(column: Column) -> dict[str, np.ndarray]:
    """Return the rows of each split that a column names.

    Raises:
        DataError: if it names something else, or a split has no rows.
    """
    for row, name in enumerate(column.values):
        if name not in SPLITS:
            column.refuse(row, f"must be train, val or test, got {shown(name)!r}")
    rows = {name: np.flatnonzero(column.values == name) for name in SPLITS}
    for name, part in rows.items():
        if not len(part):
            raise SplitError(f"`split_column` must name rows for train, val and test, got none for {name}.")
    return rows
