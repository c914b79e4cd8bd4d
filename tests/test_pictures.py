"""The pictures of the pages are those that ``python docs/draw.py`` draws.

The numbers in the files are compared where the same release of matplotlib draws, since each release places labels in
its own way; with any other release the pictures are only drawn.
"""

import base64
import importlib
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
IMAGE = re.compile(r"data:image/png;base64,([\w+/=\s]+)")
COLOUR = re.compile(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})\b")
CLOSE = 0.75  # points; a picture is about 500 wide


@pytest.fixture(scope="module")
def style():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        importlib.import_module("draw")
        yield importlib.import_module("drawings.style")


def parts(text: str) -> tuple[list[np.ndarray], str, np.ndarray]:
    """The embedded images, the file without its numbers, and the numbers."""
    images = [imread(io.BytesIO(base64.b64decode(code)), format="png") for code in IMAGE.findall(text)]
    text = re.sub(r'(id="|#)[a-z]+[0-9a-f]{10}\b', r"\1name", IMAGE.sub("image", text))  # names made from the numbers
    text = COLOUR.sub(lambda found: " ".join(str(int(part, 16) / 8) for part in found.groups()), text)
    return images, NUMBER.sub("number", text), np.array([float(number) for number in NUMBER.findall(text)])


def difference(old: str, new: str) -> str:
    """What tells two pictures apart, or an empty string."""
    (old_images, old_frame, old_numbers), (new_images, new_frame, new_numbers) = parts(old), parts(new)
    if old_frame != new_frame or len(old_images) != len(new_images):
        return "other shapes or letters"
    furthest = np.abs(old_numbers - new_numbers).max()
    if not furthest <= CLOSE:
        return f"a number differs by {furthest:.2f} points"
    for a, b in zip(old_images, new_images, strict=True):
        if a.shape != b.shape or np.abs(a - b).max() > 0.05:
            return "another image"
    return ""


def names() -> list[str]:
    """The registered pictures, read from the source, so that collecting the tests draws and imports nothing."""
    files = sorted((DOCS / "drawings").glob("*.py"))
    return [name for file in files for name in re.findall(r"^@picture\ndef (\w+)\(", file.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("name", names())
def test_the_committed_picture_is_what_is_drawn(name: str, style, tmp_path: Path) -> None:
    drawn = style.save(name, tmp_path).read_text()
    committed = (DOCS / "pictures" / f"{name}.svg").read_text()
    assert len(drawn) > 1000
    if f"Matplotlib v{matplotlib.__version__}," not in committed:
        pytest.skip(f"docs/pictures/{name}.svg was drawn by another release of matplotlib")
    assert not difference(committed, drawn), f"run python docs/draw.py {name}"


def test_the_register_holds_the_pictures_of_the_source(style) -> None:
    assert sorted(style.PICTURES) == sorted(names())


def test_each_picture_is_shown_on_a_page() -> None:
    text = "".join(page.read_text() for page in DOCS.glob("**/*.md"))
    assert not [name for name in names() if f"pictures/{name}.svg)" not in text]


def test_a_moved_line_and_another_letter_are_noticed() -> None:
    picture = (DOCS / "pictures" / "circle_to_ellipse.svg").read_text()
    number = re.search(r"L (\d+\.\d+)", picture)
    assert number is not None
    assert not difference(picture, picture)
    assert not difference(picture, picture.replace(number[0], f"L {float(number[1]) + 0.01}", 1))
    assert "differs" in difference(picture, picture.replace(number[0], f"L {float(number[1]) + 2}", 1))
    assert difference(picture, picture.replace("stroke-width", "stroke", 1)) == "other shapes or letters"
    assert not difference(picture, picture.replace("#0072b2", "#0173b3"))
    assert "differs" in difference(picture, picture.replace("#0072b2", "#1e9999"))
