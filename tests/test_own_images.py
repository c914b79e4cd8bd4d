"""Images from folders and tables, as arrays and as streams, with the mistakes that people make."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import ToTensor, v2

import fnn
from fnn.data import batches, from_csv, from_dataset, from_folder


def pixels(seed: int, mode: str = "L", height: int = 6, width: int = 5) -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, shape, dtype=numpy.uint8), mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three and two images."""
    for name, count in (("boot", 3), ("bag", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            pixels(10 * len(name) + i).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "boot" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_is_torchvisions_image_folder(tmp_path: Path, mode: str) -> None:
    for name, count in (("boot", 3), ("bag", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels(10 * len(name) + i, mode).save(tmp_path / name / f"{i}.png")
    theirs = datasets.ImageFolder(str(tmp_path), ToTensor())
    ours = from_folder(tmp_path, channels=3)
    assert list(ours.classes) == theirs.classes
    assert torch.equal(ours.data[0], torch.stack([image for image, _ in theirs]))
    assert ours.data[1].tolist() == theirs.targets
    assert [str(file) for file in ours.files] == [file for file, _ in theirs.samples]
    plain = from_dataset(datasets.ImageFolder(str(tmp_path)))  # PIL items
    assert torch.equal(plain[0], ours.data[0])
    assert from_folder(tmp_path).data[0].shape[1] == len(mode)


def test_a_stream_gives_the_batches_of_the_arrays(folder: Path) -> None:
    options = {"size": 8, "transform": lambda x: 2 * x - 1, "target_transform": fnn.data.transforms.one_hot(2)}
    arrays, stream = (from_folder(folder, stream=stream, **options).data for stream in (False, True))
    for key in (None, fnn.random.key(3)):
        ours, theirs = batches(stream, 2, key), batches(arrays, 2, key)
        assert len(ours) == len(theirs) == 3
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine[0], other[0])
            assert torch.equal(mine[1], other[1])
    assert len(list(batches(stream, 2, drop_last=True))) == 2
    assert float(arrays[0].min()) < 0
    assert arrays[1].shape == (5, 2)


def test_a_stream_reads_each_row_once_and_one_batch_ahead() -> None:
    read: list[int] = []
    stream = fnn.data.Stream(range(10), lambda i: (read.append(i), torch.tensor(i))[1], workers=1)
    taken = batches(stream, 3)
    assert next(taken).tolist() == [0, 1, 2]
    assert len(read) <= 6
    assert [batch.tolist() for batch in taken] == [[3, 4, 5], [6, 7, 8], [9]]
    assert sorted(read) == list(range(10))


def test_an_error_of_a_stream_is_raised_at_its_batch(folder: Path) -> None:
    stream = from_folder(folder, stream=True)
    stream.files[4].write_bytes(b"no image")
    taken = batches(stream.data, 2)
    next(taken)
    next(taken)
    with pytest.raises(ValueError, match=r"2\.png is not an image"):
        next(taken)


def test_torchvisions_v2_transforms_are_taken_as_they_are(folder: Path) -> None:
    transform = v2.Compose([v2.ToImage(), v2.Resize((4, 4)), v2.ToDtype(torch.float32, scale=True)])
    images = from_folder(folder, transform=transform).data[0]
    assert type(images) is Tensor
    assert images.shape == (5, 1, 4, 4)


MODES: dict[str, tuple[Callable[[], Image.Image], Tensor]] = {
    "1": (lambda: Image.new("1", (2, 2), 1), torch.ones(1, 2, 2)),
    "L": (lambda: Image.new("L", (2, 2), 51), torch.full((1, 2, 2), 0.2)),
    "LA": (lambda: Image.new("LA", (2, 2), (51, 7)), torch.full((1, 2, 2), 0.2)),
    "P": (lambda: Image.new("RGB", (2, 2), (51, 102, 255)).convert("P", palette=Image.Palette.ADAPTIVE), None),
    "RGB": (lambda: Image.new("RGB", (2, 2), (51, 102, 255)), None),
    "RGBA": (lambda: Image.new("RGBA", (2, 2), (51, 102, 255, 9)), None),
    "I;16": (lambda: Image.fromarray(numpy.full((2, 2), 13107, numpy.uint16)), torch.full((1, 2, 2), 0.2)),
}  # type: ignore[assignment]


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image(mode: str, tmp_path: Path) -> None:
    make, expected = MODES[mode]
    (tmp_path / "class").mkdir()
    make().save(tmp_path / "class" / "0.png")
    colour = torch.tensor([0.2, 0.4, 1.0])[:, None, None].expand(3, 2, 2)
    images = from_folder(tmp_path).data[0]
    torch.testing.assert_close(images[0], colour if expected is None else expected)
    assert from_folder(tmp_path, channels=3).data[0].shape == (1, 3, 2, 2)
    assert from_folder(tmp_path, channels=1).data[0].shape == (1, 1, 2, 2)


def test_the_orientation_of_a_camera(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    image = pixels(0, "RGB", 4, 8)
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "class" / "0.png", exif=tags)
    assert from_folder(tmp_path).data[0].shape == (1, 3, 8, 4)


TABLES = {  # text, arguments, labels, classes
    "of the tutorial": ("a.png, 0\nb.png, 9\nc.png, 2\n", {}, [0, 9, 2], 10),
    "with a header": ("file_name,label\na.png,1\nb.png,0\nc.png,1\n", {}, [1, 0, 1], 2),
    "by column names": ("label,size,file\n1,3,a.png\n0,3,b.png\n", {"columns": ("file", "label")}, [1, 0], 2),
    "by places": ("1,a.png\n0,b.png\n", {"columns": (1, 0)}, [1, 0], 2),
    "names": ("a.png,shirt\nb.png,bag\nc.png,shirt\n", {}, [1, 0, 1], ("bag", "shirt")),
    "names in an order": ("a.png,shirt\nb.png,bag\n", {"classes": ("shirt", "bag")}, [0, 1], ("shirt", "bag")),
    "numbers": (
        "a.png,1\nb.png,0\n",
        {"classes": ("shirt", "bag", "boot")},
        [1, 0],
        ("shirt", "bag", "boot"),
    ),
    "byte order mark, quotes, empty lines": ('\ufeff"a.png",1\n\n"b.png", 0\n', {}, [1, 0], 2),
}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for i, name in enumerate("abc"):
        pixels(i).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, three: Path) -> None:
    text, arguments, labels, classes = TABLES[name]
    (three / "labels.csv").write_text(text, encoding="utf-8")
    own = from_csv(three / "labels.csv", three, **arguments)
    assert own.data[1].tolist() == labels
    assert own.data[0].shape == (len(labels), 1, 6, 5)
    assert own.classes == (tuple(map(str, range(classes))) if isinstance(classes, int) else classes)
    assert torch.equal(own.data[0][0], ToTensor()(Image.open(three / "a.png")))


MISTAKES = {
    "empty": ("", {}, r"labels\.csv has no rows"),
    "a header alone": ("file,label\n", {}, "a header and no rows"),
    "another column": ("file,label\na.png,1\n", {"columns": ("file", "class")}, "no column 'class'.*'file,label'"),
    "a place too many": ("a.png,1\n", {"columns": (0, 2)}, "no column 2.*'a.png,1'"),
    "a missing label": ("a.png,1\nb.png\n", {}, "line 2 of .*'b.png'.*no label in column 1"),
    "a missing image": ("a.png,1\nz.png,0\n", {}, r"line 2 of .*z\.png, which is missing"),
    "mixed labels": ("a.png,1\nb.png,bag\n", {}, "line 2 .*'bag', and line 1 has '1'"),
    "out of range": (
        "a.png,1\nb.png,2\n",
        {"classes": ("x", "y")},
        "line 2 .*label 2, but there are 2 classes",
    ),
    "a negative label": ("a.png,-1\n", {}, "label -1, but there are labels from 0"),
    "an unknown name": ("a.png,hat\nb.png,bag\n", {"classes": ("shirt", "bag")}, "'hat', which is not in"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_tables_are_sentences(name: str, three: Path) -> None:
    text, arguments, sentence = MISTAKES[name]
    (three / "labels.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        from_csv(three / "labels.csv", three, **arguments)


def test_mistakes_in_folders_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        from_folder(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no folders"):
        from_folder(folder / "bag")
    with pytest.raises(ValueError, match=r"channels is 1 \(grey\) or 3"):
        from_folder(folder, channels=2)  # type: ignore[arg-type]
    (folder / "zebra").mkdir()
    with pytest.raises(FileNotFoundError, match="zebra holds no images"):
        from_folder(folder)
    pixels(0, "RGB").save(folder / "zebra" / "0.png")
    with pytest.raises(ValueError, match=r"bag/0\.png is grey and .*zebra/0\.png is coloured; write channels=1"):
        from_folder(folder)
    pixels(0, "L", 9, 9).save(folder / "zebra" / "0.png")
    with pytest.raises(ValueError, match=r"\(6, 5\) and .*zebra/0\.png has \(9, 9\); write size="):
        from_folder(folder)
    whole = (folder / "zebra" / "0.png").read_bytes()
    (folder / "zebra" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"zebra/0\.png is not an image that can be read, or is damaged"):
        from_folder(folder, size=6)


def test_from_dataset_takes_loaders_dicts_and_iterables() -> None:
    x, y = torch.rand(5, 2), torch.arange(5)
    pairs = torch.utils.data.TensorDataset(x, y)
    for source in (pairs, torch.utils.data.DataLoader(pairs, 2), list(pairs), iter(pairs)):
        found = from_dataset(source)
        assert torch.equal(found[0], x)
        assert torch.equal(found[1], y)
    named = from_dataset([{"x": row, "y": int(label)} for row, label in pairs])
    assert torch.equal(named["x"], x)
    assert torch.equal(named["y"], y)
    with pytest.raises(TypeError, match=r"rows \(input, label, \.\.\.\), got a Tensor"):
        from_dataset([torch.ones(2)])
    with pytest.raises(ValueError, match=r"cannot be stacked.*give them one shape"):
        from_dataset([(torch.ones(2), 0), (torch.ones(3), 0)])
