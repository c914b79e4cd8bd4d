"""One's own images: folders with one folder a class, and tables of file names and labels."""

import csv as _csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn.data.batches import Stream, stack_rows
from fnn.layers.base import as_pair

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Transform = Callable[[Tensor], Tensor]
Channels = Literal[1, 3]


class OwnImages(NamedTuple):
    """Labelled images from files.

    data: the pair (images, labels), float32 (n, channels, height, width) in [0, 1] and int64 (n,), or a
    :class:`fnn.data.Stream` of them; both are what :func:`fnn.data.batches` takes. classes: the names of the classes,
    by label. files: the file of each row.
    """

    data: Any
    classes: tuple[str, ...]
    files: tuple[Path, ...]


def from_folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: Channels | None = None,
    transform: Transform | None = None,
    target_transform: Transform | None = None,
    stream: bool = False,
) -> OwnImages:
    """Read images from a folder that has one folder for each class.

    The classes are the names of the folders in alphabetical order, and the files of a class are sorted too; files with
    other endings than those of images are left out. ``size`` scales each image to (height, width), or to a square,
    bilinearly and with antialiasing; without it all images must have one size. ``channels`` makes all images grey (1)
    or coloured (3); without it they must be of one kind. An alpha channel is dropped, and pictures of a camera are
    turned as their orientation says. ``transform`` is applied to batches of images (n, channels, height, width), such
    as those of :mod:`fnn.data.transforms` or of ``torchvision.transforms.v2``; ``target_transform`` to labels (n,).

    With ``stream=True`` files are read when a batch needs them. Otherwise all are read at once. Raises
    ``FileNotFoundError`` for a folder that is missing or holds no images, and ``ValueError`` for a file that is not an
    image and for images of different sizes or kinds, with the name of the file. Needs Pillow (``fnn[recipes]``).

    >>> import tempfile, PIL.Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     PIL.Image.new("L", (8, 8), 255).save(root / name / "0.png")
    >>> own = from_folder(root)
    >>> own.data[0].shape, own.data[1], own.classes
    (torch.Size([2, 1, 8, 8]), tensor([0, 1]), ('cat', 'dog'))
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"from_folder: there is no folder {root}")
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    rows = [(file, label) for label, name in enumerate(classes) for file in _images_in(root / name)]
    filled = {label for _, label in rows}
    if empty := [name for label, name in enumerate(classes) if label not in filled]:
        raise FileNotFoundError(f"from_folder: {root / empty[0]} holds no images ({', '.join(ENDINGS)})")
    if not rows:
        raise FileNotFoundError(
            f"from_folder: {root} holds no folders; put the images of each class into a folder of its own, such as "
            f"{root / 'cat' / '0.png'}"
        )
    reader = ImageReader("from_folder", size, channels)
    return _read_all(reader, rows, tuple(classes), transform, target_transform, stream)


def from_csv(
    csv: str | Path,
    folder: str | Path,
    *,
    columns: tuple[int | str, int | str] = (0, 1),
    classes: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    channels: Channels | None = None,
    transform: Transform | None = None,
    target_transform: Transform | None = None,
    stream: bool = False,
) -> OwnImages:
    """Read images that a table lists: a line for each image, with the name of a file in ``folder`` and its label.

    columns: the places, or the names in the first line, of the file names and of the labels. The first line is a
    header if its label is not a number or class and no file has its name. Labels are integers from 0, or names. Names
    are numbered in alphabetical order, or in the order of ``classes``. The other arguments and errors are those of
    :func:`from_folder`. Raises ``ValueError`` naming the line for a missing column, for labels that mix names and
    numbers or are out of range, and for a table without rows.

    >>> import tempfile, PIL.Image
    >>> root = Path(tempfile.mkdtemp())
    >>> PIL.Image.new("L", (8, 8), 0).save(root / "shirt1.png")
    >>> _ = (root / "labels.csv").write_text("shirt1.png, 0\\n")
    >>> from_csv(root / "labels.csv", root).data[1]
    tensor([0])
    """
    table, root = Path(csv).expanduser(), Path(folder).expanduser()
    if not table.is_file():
        raise FileNotFoundError(f"from_csv: there is no file {table}")
    if not root.is_dir():
        raise FileNotFoundError(f"from_csv: there is no folder {root}")
    with table.open(newline="", encoding="utf-8-sig") as file:
        lines = [
            (number, [field.strip() for field in fields])
            for number, fields in enumerate(_csv.reader(file, skipinitialspace=True), 1)
            if any(field.strip() for field in fields)
        ]
    if not lines:
        raise ValueError(f"from_csv: {table} has no rows")
    header = lines[0][1]
    first, second = (_place(table, header, column) for column in columns)
    named = any(isinstance(column, str) for column in columns)
    if named or _is_header(header, first, second, root, classes):
        lines = lines[1:]
    if not lines:
        raise ValueError(f"from_csv: {table} has a header and no rows")
    for number, fields in lines:
        if len(fields) <= max(first, second) or not fields[first] or not fields[second]:
            raise ValueError(
                f"from_csv: line {number} of {table} is {','.join(fields)!r}, which has no file name in column {first} "
                f"or no label in column {second}"
            )
        if not (root / fields[first]).is_file():
            raise FileNotFoundError(
                f"from_csv: line {number} of {table} names {root / fields[first]}, which is missing"
            )
    labels, names = _labels(table, [(number, fields[second]) for number, fields in lines], classes)
    rows = [(root / fields[first], label) for (_, fields), label in zip(lines, labels, strict=True)]
    return _read_all(ImageReader("from_csv", size, channels), rows, names, transform, target_transform, stream)


class ImageReader:
    """Reads one file as float32 (channels, height, width) in [0, 1].

    ``ImageReader(caller, size, channels)`` starts its messages with the name of the caller; size and channels are as in
    :func:`from_folder`. A call with a path raises ``FileNotFoundError``, or ``ValueError`` for what is not an image.

    >>> import tempfile, PIL.Image
    >>> file = Path(tempfile.mkdtemp()) / "0.png"
    >>> PIL.Image.new("RGB", (8, 4)).save(file)
    >>> ImageReader("mine", size=16, channels=1)(file).shape
    torch.Size([1, 16, 16])
    """

    def __init__(
        self, caller: str, size: int | tuple[int, int] | None = None, channels: Channels | None = None
    ) -> None:
        if channels not in (None, 1, 3):
            raise ValueError(f"{caller}: channels is 1 (grey) or 3 (colour), got {channels!r}")
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise ImportError(
                f"{caller} reads images through Pillow, which is missing: pip install 'fnn[recipes]'"
            ) from error
        self.caller = caller
        self.channels: Channels | None = channels  # pyright: ignore[reportAttributeAccessIssue]
        self.size = None if size is None else as_pair(caller, "size", size)
        self.open, self.upright = Image.open, ImageOps.exif_transpose

    def __call__(self, file: Path) -> Tensor:
        try:
            with self.open(file) as image:
                pixels = pixels_of(self.upright(image), self.channels)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.caller}: there is no file {file}") from None
        except _PixelError as error:
            raise ValueError(f"{self.caller}: {file} {error}") from None
        except Exception as error:  # Pillow raises errors of many types for damaged files
            raise ValueError(
                f"{self.caller}: {file} is not an image that can be read, or is damaged ({error})"
            ) from error
        if self.size is not None and tuple(pixels.shape[1:]) != self.size:
            pixels = F.interpolate(pixels[None], self.size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return pixels


def pixels_of(image: Any, channels: Channels | None = None) -> Tensor:
    """Convert a PIL image to float32 (channels, height, width) in [0, 1], grey or coloured. Alpha is dropped."""
    if image.mode.startswith("I;16"):
        grey = torch.frombuffer(bytearray(image.tobytes("raw", "I;16")), dtype=torch.uint16)
        pixels = grey.reshape(1, image.height, image.width).float() / 65535
        return pixels if channels != 3 else pixels.repeat(3, 1, 1)
    if image.mode in ("I", "F"):
        raise _PixelError(f"has pixels of mode {image.mode!r}, whose range is unknown; save it with 8 or 16 bits")
    channels = channels or (1 if image.mode in ("1", "L", "LA", "La") else 3)
    image = image.convert("L" if channels == 1 else "RGB")
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(image.height, image.width, channels).permute(2, 0, 1).contiguous().float() / 255


class _PixelError(ValueError):
    """An image cannot be used; the message continues a sentence about the file."""


def _read_all(
    reader: ImageReader,
    rows: list[tuple[Path, int]],
    classes: tuple[str, ...],
    transform: Transform | None,
    target_transform: Transform | None,
    stream: bool,
) -> OwnImages:
    shape = tuple(reader(rows[0][0]).shape)

    def read(row: tuple[Path, int]) -> tuple[Tensor, int]:
        image = reader(row[0])
        _check_alike(reader, (rows[0][0], shape), row[0], tuple(image.shape))
        return image, row[1]

    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        images, labels = stack_rows(rows)
        return _plain(transform, images), _plain(target_transform, labels)

    files = Stream(rows, read, collate)
    data = files if stream else files.take(range(len(rows)))
    return OwnImages(data, classes, tuple(file for file, _ in rows))


def _check_alike(reader: ImageReader, first: tuple[Path, tuple], file: Path, shape: tuple) -> None:
    if shape == first[1]:
        return
    if shape[0] != first[1][0]:
        kinds = {1: "grey", 3: "coloured"}
        raise ValueError(
            f"{reader.caller}: {first[0]} is {kinds[first[1][0]]} and {file} is {kinds[shape[0]]}; write channels=1 or "
            "channels=3 to make all images alike"
        )
    raise ValueError(
        f"{reader.caller}: {first[0]} has (height, width) {first[1][1:]} and {file} has {shape[1:]}; write "
        "size=(height, width) to scale all images"
    )


def _plain(transform: Transform | None, values: Tensor) -> Tensor:
    """Apply a transform, and return a plain tensor where torchvision's transforms return a subclass."""
    return values if transform is None else torch.as_tensor(transform(values)).as_subclass(Tensor)


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())


def _place(table: Path, header: list[str], column: int | str) -> int:
    if isinstance(column, int) and 0 <= column < len(header):
        return column
    if column in header:
        return header.index(str(column))
    raise ValueError(f"from_csv: {table} has no column {column!r}; its first line is {','.join(header)!r}")


def _is_header(header: list[str], first: int, second: int, root: Path, classes: Sequence[str] | None) -> bool:
    label = header[second]
    return not (root / header[first]).is_file() and not _is_integer(label) and label not in (classes or ())


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _labels(
    table: Path, given: list[tuple[int, str]], classes: Sequence[str] | None
) -> tuple[list[int], tuple[str, ...]]:
    numbers = [_is_integer(text) for _, text in given]
    if all(numbers):
        labels = [int(text) for _, text in given]
        count = len(classes) if classes is not None else max(labels) + 1
        for (line, text), label in zip(given, labels, strict=True):
            if not 0 <= label < count:
                limit = f"{count} classes: 0 to {count - 1}" if classes is not None else "labels from 0"
                raise ValueError(f"from_csv: line {line} of {table} has the label {text}, but there are {limit}")
        return labels, tuple(classes if classes is not None else map(str, range(count)))
    if any(numbers):
        line, text = next(row for row, number in zip(given, numbers, strict=True) if number != numbers[0])
        raise ValueError(
            f"from_csv: line {line} of {table} has the label {text!r}, and line {given[0][0]} has {given[0][1]!r}; "
            "labels are all integers or all names"
        )
    names = list(classes) if classes is not None else sorted({text for _, text in given})
    for line, text in given:
        if text not in names:
            raise ValueError(f"from_csv: line {line} of {table} has the label {text!r}, which is not in {names}")
    return [names.index(text) for _, text in given], tuple(names)
