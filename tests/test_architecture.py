"""The page about the structure of the code says what the code is."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_architecture", DOCS / "make_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rooms_import_one_another_in_one_direction(script: ModuleType) -> None:
    height = script.levels(script.rooms())
    assert height["tree"] < height["optim"]
    with pytest.raises(ValueError, match="in a circle: \\['a', 'b'\\]"):
        script.levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_the_picture_and_the_line_numbers_are_those_of_the_code(script: ModuleType) -> None:
    again = "run python docs/make_architecture.py"
    assert script.PICTURE.read_text() == script.draw(script.rooms()), again
    page = script.PAGE.read_text()
    assert page == script.with_lines(page), again
    assert "](architecture.svg)" in page


def test_the_page_names_every_room(script: ModuleType) -> None:
    page = script.PAGE.read_text()
    table = page[page.index("| room |") : page.index("## Two shapes")]
    missing = [room for room in script.rooms() if f"`{room}`" not in table]
    assert not missing
