"""Readers: the data that comes along, idx files (MNIST family), image folders, Hugging Face data sets -> `Source`."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._command.files import content
from steppe._command.lookup import nearest
from steppe.compare.data.examples import Source, Split, hold_out_test
from steppe.compare.data.together import numbered

_IDX_UBYTE = 0x08
FOLDER = "folder"
"""What images may be kept together by."""
_VAL = ("val", "valid", "validation")
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def digits(test: int) -> Source:
    """The 1,797 real 8x8 digits inside scikit-learn, `test` of them kept for the test, the same for every seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    return hold_out_test(Split(images, torch.tensor(bunch.target, dtype=torch.long)), 10, test)


def mnist1d_10k() -> Source:
    """MNIST-1D's 4,000 signals to train on; 10,000 to choose by and 10,000 to judge by are drawn anew."""
    from steppe.compare.data.signals import drawn  # scipy's filters take their time

    found = [drawn(10_000, seed) for seed in (2020, 2024)]
    val, test = (Split(torch.from_numpy(x.astype(np.float32)).unsqueeze(1), torch.from_numpy(y)) for x, y in found)
    return replace(mnist1d(), val=val, test=test)


def mnist1d() -> Source:
    """MNIST-1D as published: 4,000 signals of 40 numbers and 1,000 for the test; see the README beside the file."""
    packed = files("steppe.compare.data.embedded").joinpath("mnist1d.npz").read_bytes()
    with np.load(io.BytesIO(packed)) as found:
        x = (found["high"].astype(np.int32) * 256 + found["low"]).astype(np.float32) / 1024
        y = found["y"].astype(np.int64)
    everything = Split(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y))
    held = torch.arange(4000, 5000)
    return Source(everything.take(torch.arange(4000)), everything.take(held), 10)


def read_idx(path: Path) -> Tensor:
    """One idx file of unsigned bytes, gzip or not, as a uint8 tensor of the shape in its header."""
    try:
        raw = content(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); is the download complete?") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _IDX_UBYTE:
        raise ValueError(f"{path} is not an idx file of unsigned bytes; expected the format of MNIST's files")
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes]) if len(raw) >= 4 + 4 * axes else ()
    body = memoryview(raw)[4 + 4 * axes :]
    wanted = int(torch.Size(shape).numel())
    if not shape or len(body) != wanted:
        raise ValueError(f"{path} holds {len(body)} values where its header says {wanted}; is the download complete?")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)


def idx_folder(folder: Path) -> Source:
    """The four files of the MNIST family in `folder`: {train,t10k}-{images,labels}, with any of the usual endings."""
    train = _idx_pair(folder, ("train",))
    test = _idx_pair(folder, ("t10k", "test"))
    return Source(train, test, int(max(train.y.max(), test.y.max())) + 1)


def _idx_pair(folder: Path, prefixes: tuple[str, ...]) -> Split:
    images = read_idx(_idx_file(folder, prefixes, "images"))
    labels = read_idx(_idx_file(folder, prefixes, "labels"))
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {prefixes[0]} images but {len(labels)} labels; they must be as many")
    images = images.unsqueeze(1) if images.dim() == 3 else images
    return Split(images, labels.long())


def _idx_file(folder: Path, prefixes: tuple[str, ...], kind: str) -> Path:
    _need_folder(folder)
    found = [path for prefix in prefixes for path in sorted(folder.glob(f"*{prefix}*{kind}*"))]
    if not found:
        raise ValueError(f"{folder} has no file like {prefixes[0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte(.gz)")
    return found[0]


def image_folder(folder: Path, size: int | None, group: str | None = None) -> Source:
    """A folder of images, one subfolder per class; or `train`, `test` and perhaps `val` folders of that kind.

    Without a `test` folder a fixed fifth of the images, stratified, becomes the test set. With `group` "folder" the
    images of each folder below a class, which may be below several, stay in one part.
    """
    _need_folder(folder)
    if group not in (None, FOLDER):
        raise ValueError(f"group is {group!r}; of images it is {FOLDER!r}, the one below its class that an image is in")
    read = partial(_read_classes, size=size, known=None if group is None else {})
    parts = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    source, classes = _parted_folder(parts, read) if "train" in parts else _whole_folder(folder, read)
    return replace(source, names=tuple(classes), notes=(*_unread(parts.values()), *_loose(folder), *_linked(folder)))


def _whole_folder(folder: Path, read: Callable[..., tuple[Split, list[str]]]) -> tuple[Source, list[str]]:
    _need_no_parts(sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path)))
    everything, classes = read(folder, None)
    return hold_out_test(everything, len(classes)), classes


def _parted_folder(parts: Mapping[str, Path], read: Callable[..., tuple[Split, list[str]]]) -> tuple[Source, list[str]]:
    train, classes = read(parts["train"], None)
    val_folder = next((parts[name] for name in _VAL if name in parts), None)
    val = read(val_folder, classes)[0] if val_folder else None
    if "test" not in parts:
        return hold_out_test(train, len(classes), val=val), classes
    test, _ = read(parts["test"], classes)
    return Source(train, test, len(classes), val), classes


def _unread(folders: Iterable[Path]) -> list[str]:
    """A sentence on files among the images whose endings are none of theirs."""
    files = (path for folder in folders if not _hidden(folder) for path in folder.rglob("*.*") if path.is_file())
    found = Counter(path.suffix.lower() for path in files if not _hidden(path))
    left = [f"{many} {ending}" for ending, many in found.most_common() if ending not in _IMAGE_ENDINGS]
    return [f"Files that were not read, as their endings are none of images: {', '.join(left)}."] if left else []


def _loose(folder: Path) -> list[str]:
    """A sentence on images that are in no folder of a class."""
    many = sum(path.suffix.lower() in _IMAGE_ENDINGS and not _hidden(path) for path in folder.iterdir())
    return [f"Images in {folder} itself, which is no class, were not read: {many}."] if many else []


def _linked(folder: Path) -> list[str]:
    """A sentence on links below a class: they may lead anywhere, and in a circle."""
    found = (path for path in folder.glob("*/**/*") if path.is_symlink() and path.is_dir() and not _hidden(path))
    there = [path for path in found if _images(path)]
    return (
        [f"Folders that are links, below that of a class, were not read: {len(there)} ({there[0]})."] if there else []
    )


def _need_no_parts(classes: Iterable[Path]) -> None:
    """Refuse classes, or whole data sets, each with parts of its own, which would be thrown together."""
    for path in classes:
        below = {each.name.lower() for each in path.iterdir() if each.is_dir()}
        if "train" in below and not below.isdisjoint(("test", *_VAL)):
            raise ValueError(
                f"{path} has a train folder below it; expected one train folder, with the classes below it"
            )


def _read_classes(
    folder: Path, classes: list[str] | None, size: int | None, known: dict[str, int] | None
) -> tuple[Split, list[str]]:
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _hidden(path))
    if classes is not None and (strange := set(found) - set(classes)):
        raise ValueError(f"{folder} has classes that {folder.parent / 'train'} lacks: {', '.join(sorted(strange))}")
    classes = classes or found
    if len(classes) < 2:
        raise ValueError(f"{folder} has {len(classes)} class folders; expected at least 2, one subfolder per class")
    files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    empty = sorted(set(found) - {classes[label] for _, label in files})
    if files and empty:
        raise ValueError(f"{folder / empty[0]} has no images; put some there, or remove the folder")
    if not files:
        raise ValueError(f"{folder} has no images; known endings: {' '.join(sorted(_IMAGE_ENDINGS))}")
    x = torch.stack(_same_size([(path, _read_image(path, size)) for path, _ in files]))
    together = None if known is None else numbered([_below(path, folder) for path, _ in files], known)
    return Split(x, torch.tensor([label for _, label in files]), together), classes


def _images(folder: Path) -> list[Path]:
    """Those in a folder and in the folders below."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_ENDINGS)
    return sorted(path for path in found if not any(map(_hidden, [path, *path.relative_to(folder).parents])))


def _below(path: Path, folder: Path) -> str:
    """The folder below its class that an image is in."""
    inside = path.relative_to(folder).parts[1:-1]
    if not inside:
        raise ValueError(f"{path} is in no folder below its class, which would be its group; put it into one")
    return inside[0]


def _hidden(path: Path) -> bool:
    """What a system or a notebook left beside the data: `.ipynb_checkpoints`, `._cat.png`, `__MACOSX`."""
    return path.name.startswith((".", "__MACOSX"))


def _same_size(images: list[tuple[Path, Tensor]]) -> list[Tensor]:
    first_path, first = images[0]
    for path, image in images:
        if image.shape != first.shape:
            a, b = ("x".join(map(str, reversed(t.shape[1:]))) for t in (first, image))
            raise ValueError(f"{first_path.name} is {a} and {path.name} is {b}; give --image-size to resize all")
    return [image for _, image in images]


def _read_image(path: Path, size: int | None) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return _as_tensor(image, size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image; remove it or repair it") from error


def _as_tensor(image: Any, size: int | None) -> Tensor:
    """A PIL image as uint8 (3, height, width), upright, resized to `size` x `size` where asked."""
    from PIL import ImageOps

    upright = _bytes_of(ImageOps.exif_transpose(image), image.format)
    palette = upright.mode == "P" and "transparency" in upright.info  # of which PIL warns on its way to RGB
    rgb = (upright.convert("RGBA") if palette else upright).convert("RGB")
    rgb = rgb.resize((size, size)) if size else rgb
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.reshape(rgb.height, rgb.width, 3).permute(2, 0, 1)


def _bytes_of(image: Any, kind: str | None) -> Any:
    """The image with a byte for each channel of a pixel; what is above 255 PIL would cut to white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("an image has 32 bits for a pixel, which do not say what is white; save it with 8 or 16")
    return image


def hugging_face(
    dataset: str, image_column: str | None, label_column: str | None, size: int | None, group: str | None = None
) -> Source:
    """The data set `dataset` of the Hugging Face hub (needs the extra `hf`), an image and a label column.

    `group` is a column whose examples of the same value stay in one part.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(f"hf:{dataset} needs the package datasets; run: pip install 'steppe[study,hf]'") from error
    parts = datasets.load_dataset(dataset)
    if "train" not in parts:
        raise ValueError(f"hf:{dataset} has no split 'train'; it has {', '.join(parts)}")
    val = next((parts[name] for name in ("validation", "valid", "val") if name in parts), None)
    names = parts["train"].column_names
    columns = (
        _column(names, image_column, ("image", "img"), "image"),
        _column(names, label_column, ("label", "labels", "fine_label"), "label"),
    )
    if group is not None and group not in names:
        raise ValueError(f"no column {group!r} for --group; {nearest(group, names)}")
    read = partial(_hf_split, columns=columns, size=size, group=group, known={})
    train = read(parts["train"])
    classes = int(train.y.max()) + 1
    held_out = _labelled(dataset, read(val), classes) if val is not None else None
    test = _labelled(dataset, read(parts["test"]), classes) if "test" in parts else None
    return hold_out_test(train, classes, val=held_out) if test is None else Source(train, test, classes, held_out)


def _labelled(dataset: str, split: Split, classes: int) -> Split | None:
    """The split, None where its labels are kept secret (all −1)."""
    if bool((split.y == -1).all()):
        return None
    if int(split.y.min()) < 0 or int(split.y.max()) >= classes:
        wrong = next(int(y) for y in split.y if not 0 <= y < classes)
        raise ValueError(f"hf:{dataset} has the label {wrong} outside of training, whose labels are 0 to {classes - 1}")
    return split


def _column(names: list[str], given: str | None, usual: tuple[str, ...], kind: str) -> str:
    if given is not None and given not in names:
        raise ValueError(f"no column {given!r} for --{kind}-column; {nearest(given, names)}")
    found = given or next((name for name in usual if name in names), None)
    if found is None:
        raise ValueError(f"no {kind} column found among {', '.join(names)}; name it with --{kind}-column")
    return found


def _hf_split(part: Any, columns: tuple[str, str], size: int | None, group: str | None, known: dict[str, int]) -> Split:
    image, label = columns
    images = [(Path(f"{image} {i}"), _as_tensor(row, size)) for i, row in enumerate(part[image])]
    together = None if group is None else numbered(_known(part[group], group), known)
    return Split(torch.stack(_same_size(images)), torch.tensor(list(part[label]), dtype=torch.long), together)


def _known(values: Iterable[Any], name: str) -> list[str]:
    """The values as words, none of them missing."""
    found = list(values)
    if None in found:
        raise ValueError(f"column {name!r} has no value in example {found.index(None)} (from 0); leave such out")
    return list(map(str, found))


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds the data")
