"""Where a folder's images and their classes are: in folders of classes, of splits, or in a table."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import make_dataset

from deq_lightning.data.base import Size, drawn, samples_in
from deq_lightning.data.errors import DatasetNotFoundError, SplitError, brief

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SPLITS = {  # folders and entries of tables, in any case, and what they mean
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
ELSEWHERE = "or set `root=PATH` to name another folder."

Listing = dict[str, list[tuple[str, str]]]  # of a split, the path and the class of each image


def list_images(root: str, labels: str | None) -> Listing:
    """Return the images of each split that there is; without splits all are in "train".

    Args:
        root: folder of images.
        labels: path of a table with columns `file`, `label` and, if wanted, `split`. None: folders say the class.

    Raises:
        DatasetNotFoundError: if the images are not laid out in one of the three ways.
    """
    folder = Path(root).expanduser()
    if not folder.exists():
        raise _error(f"there is no folder `{root}`. Set `root=PATH` to name the folder that holds the images.")
    if not folder.is_dir():
        raise _error(f"`{root}` is a file. Unpack it if it is an archive, and set `root=PATH` to name the folder.")
    listing = _by_folders(folder) if labels is None else _by_table(_table(folder, labels), folder)
    classes = {label for _, label in listing["train"]}
    if len(classes) < 2:
        raise _error(f"there is one class in `{root}`, `{min(classes)}`, and two or more are needed. Add another one.")
    for split, images in listing.items():
        for path, label in images:
            if label not in classes:
                raise _error(
                    f"`{path}` of `{split}` is of a class `{label}` that `train` lacks. Remove it, {ELSEWHERE}"
                )
    return listing


def _error(fault: str) -> DatasetNotFoundError:
    return DatasetNotFoundError(f"`ImageFolder`: {fault}")


def _by_folders(folder: Path) -> Listing:
    names = [one.name for one in _folders(folder)]
    splits = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    meant, others = set(splits.values()), [name for name in names if name not in splits]
    if others and not {"train"} < meant:  # one such name alone is that of a class
        return {"train": _by_classes(folder)}
    if others:
        raise _error(
            f"`{folder}` has folders of splits, {' and '.join(splits)}, and beside them `{others[0]}`. Move it away, "
            f"{ELSEWHERE}"
        )
    if splits and "train" not in meant:
        raise _error(f"there is `{folder / min(splits)}`, but no `{folder / 'train'}`. Add it, {ELSEWHERE}")
    if len(meant) < len(splits):
        raise _error(f"`{folder}` has two folders of one split: {' and '.join(splits)}. Leave one.")
    return {split: _by_classes(folder / name) for name, split in splits.items()} or {"train": _by_classes(folder)}


def _by_classes(folder: Path) -> list[tuple[str, str]]:
    names = [one.name for one in _folders(folder)]
    loose = next((one for one in sorted(folder.iterdir()) if _is_image(one, folder)), None)
    if not names:
        what = f"`{folder}` has images, but no folders of classes" if loose else f"`{folder}` has no folders in it"
        raise _error(
            f"{what}. Put the images into a folder for each class, `{folder}/CLASS/`, set `labels=FILE` to name a "
            f"table with columns file and label, {ELSEWHERE}"
        )
    if loose:
        raise _error(f"`{loose}` lies beside the folders of classes. Move it into one of them, or away.")
    numbers = {name: number for number, name in enumerate(names)}
    found = make_dataset(folder, numbers, is_valid_file=lambda path: _is_image(Path(path), folder), allow_empty=True)
    images = [(path, names[number]) for path, number in found]
    for name in sorted(set(names) - {label for _, label in images}):
        raise _error(f"`{folder / name}` holds no images ({', '.join(SUFFIXES)}). Add some, or remove that folder.")
    return images


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _table(folder: Path, labels: str) -> Path:
    """Return the path of the table, which may be given from the folder of images."""
    for path in (Path(labels).expanduser(), folder / labels):
        if path.is_file():
            return path
    raise _error(f"there is no file `{labels}`, neither from here nor in `{folder}`. Set `labels=FILE`.")


def _by_table(table: Path, folder: Path) -> Listing:
    listing: Listing = {}
    lines: dict[str, int] = {}
    for line, file, label, split in _rows(table):
        where = f"line {line} of `{table}`"
        path = str(folder / file)
        if not file or not Path(path).is_file():
            raise _error(f"{where} names `{file}`, which is not in `{folder}`. Correct the line or remove it.")
        if path in lines:
            raise _error(f"{where} names `{file}`, as line {lines[path]} does. Remove one of them.")
        if not label:
            raise _error(f"{where} has no label. Add it, or remove the line.")
        if split.lower() not in SPLITS:
            raise _error(f"{where} has the split `{split}`. Write train, val or test.")
        lines[path] = line
        listing.setdefault(SPLITS[split.lower()], []).append((path, label))
    if "train" not in listing:
        raise _error(f"`{table}` has no rows{' of the split train' if listing else ''}. Add some.")
    return {split: sorted(images) for split, images in listing.items()}


def _rows(table: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield the line, file, label and split of each row."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names = list(rows.fieldnames or ())
            if missing := [name for name in ("file", "label") if name not in names]:
                raise _error(
                    f"`{table}` must have columns file and label, separated by commas, and lacks {missing[0]}; its "
                    f"first line is `{','.join(names)}`. Name its columns there."
                )
            for row in rows:
                file_, label, split = ((row.get(name) or "").strip() for name in ("file", "label", "split"))
                yield rows.line_num, file_, label, split if "split" in names else "train"
    except (csv.Error, UnicodeDecodeError) as error:
        raise _error(f"`{table}` is not a table in UTF-8 ({brief(error)}). Save it as such.") from error


def split_off(listing: Listing, val_size: Size, test_size: Size, seed: int) -> Listing:
    """Return the images with the splits that are missing taken from "train", in the proportions of the classes.

    Args:
        listing: images of each split that there is.
        val_size: number or share of the images of "train".
        test_size: likewise.
        seed: fixes which they are.

    Raises:
        SplitError: if the sizes do not fit, or a class has too few images.
    """
    rest = listing["train"]
    wanted = {"test": test_size, "val": val_size}
    sizes = {split: samples_in(size, len(rest)) for split, size in wanted.items() if split not in listing}
    classes = Counter(label for _, label in rest)
    _check_sizes(classes, sizes)
    numbers = drawn(len(rest), sizes, seed, [label for _, label in rest])
    parts = {split: sorted(rest[number] for number in chosen) for split, chosen in numbers.items()}
    for name in sorted(set(classes) - {label for _, label in parts["train"]}):
        raise SplitError(f"no image of class `{name}` is left to train on. Add some, or set smaller sizes.")
    return {**listing, **parts}


def _check_sizes(classes: Counter[str], sizes: dict[str, int]) -> None:
    name, fewest = min(classes.items(), key=lambda item: item[1])
    if fewest <= len(sizes):
        raise SplitError(
            f"class `{name}` has {fewest} images, and needs {len(sizes) + 1} or more: {', '.join(['train', *sizes])} "
            "take one each. Add images of it, or leave it out."
        )
    count, lowest = classes.total(), len(classes)
    for split, size in sizes.items():
        if size < lowest:
            raise SplitError(
                f"`{split}_size` must stand for {lowest} images or more, as many as there are classes, got {size} of "
                f"{count}. Set `{split}_size={lowest}`."
            )
    if count - sum(sizes.values()) < lowest:
        named = " and ".join(f"`{split}_size`" for split in sizes)
        raise SplitError(
            f"{named} must leave {lowest} or more of the {count} images to train on, got "
            f"{' + '.join(map(str, sizes.values()))}. Set smaller ones."
        )
