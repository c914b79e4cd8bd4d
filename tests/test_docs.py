"""Every Python block of the README and of the documentation runs as printed."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_pages", ROOT / "docs" / "run_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
PAGES = script.PAGES
NEEDS = {"from_jax": ("jax", "optax")}  # what pages show beside fnn


@pytest.mark.parametrize("page", [page for page in PAGES if script.blocks(page)], ids=lambda page: page.stem)
def test_python_blocks_run_and_print_what_the_page_says(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for library in NEEDS.get(page.stem, ()):
        pytest.importorskip(library)
    assert script.rewritten(page) == page.read_text(), f"run python docs/run_pages.py {page}"
    for name in script.pictures(page):
        assert (tmp_path / name).stat().st_size > 0
        assert (ROOT / "docs" / "pictures" / name).stat().st_size > 0


def test_every_page_is_reached_from_a_table_of_contents() -> None:
    pages = [page for page in PAGES if page.name not in ("README.md", "index.md")]
    for page in pages:
        for index in (page.parent / "index.md", ROOT / "docs" / "index.md"):
            if index.exists() and index != page:
                listed = re.findall(r"^```{toctree}\n(.*?)^```", index.read_text(), flags=re.DOTALL | re.MULTILINE)
                names = "\n".join(listed).split()
                assert {page.stem, f"{page.parent.name}/{page.stem}"} & set(names), page.name
                break


def test_code_lines_fit_the_column_of_the_site() -> None:
    for page in PAGES:
        for block in script.blocks(page):
            assert max(map(len, block["code"].splitlines())) <= 120, page.name


def test_readme_and_site_open_with_the_same_program() -> None:
    readme, front = (script.blocks(page)[0] for page in (ROOT / "README.md", ROOT / "docs" / "index.md"))
    assert readme.group() == front.group()
    assert len([line for line in readme["code"].splitlines() if line]) <= 30


def test_no_block_escapes() -> None:
    for page in PAGES:
        assert page.read_text().count("\n```python\n") == len(script.blocks(page)), page.name
        odd = [
            line for line in page.read_text().splitlines() if re.match(r"^\s*```python\s*\S|^\s+```py|^```py$", line)
        ]
        assert not odd, f"{page.name}: these blocks would not run: {odd}"


def test_no_row_of_the_comparison_leaves_another_ahead() -> None:
    page = (ROOT / "docs" / "jacobians" / "compared.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.search(r"`[edprm·]{5}`", line)]
    assert len(rows) > 40
    for concept, *others, ours in rows:
        done = set(re.findall(r"`([edprm·]{5})`", ours)[0])
        assert "e" in done, concept
        for other in others:
            assert set("".join(re.findall(r"`([edprm·]{5})`", other))) - {"·"} <= done, concept
