"""Draw the rooms of fnn and bring the line numbers in architecture.md up to date: ``python docs/make_architecture.py``.

The picture is made from the imports in the code, so that it cannot be out of date without a test noticing.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"
BOX, GAP, ROW = 128, 28, 92  # widths of a box and of the gap between two, and the distance of rows, in pixels


def rooms() -> dict[str, set[str]]:
    """Every room of fnn (a folder, or a file beside them) and the rooms that it imports when it is imported itself."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "fnn").rglob("*.py")):
        room = file.relative_to(ROOT / "fnn").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        imports = found.setdefault(room, set())
        for node in ast.parse(file.read_text()).body:  # an import inside a function binds no room to another
            if isinstance(node, ast.ImportFrom) and node.module == "fnn":
                imports.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fnn."):
                imports.add((node.module or "").split(".")[1])
    return {room: {other for other in imports if other != room and other in found} for room, imports in found.items()}


def levels(imports: dict[str, set[str]]) -> dict[str, int]:
    """How many rooms stand below each, along the longest way down. Raises ``ValueError`` for a circle."""
    height: dict[str, int] = {}
    while len(height) < len(imports):
        ready = [room for room, below in imports.items() if room not in height and below <= height.keys()]
        if not ready:
            raise ValueError(f"rooms import each other in a circle: {sorted(imports.keys() - height.keys())}")
        height |= {room: 1 + max((height[other] for other in imports[room]), default=-1) for room in ready}
    return height


def draw(imports: dict[str, set[str]]) -> str:
    """An SVG with one box for each room; an arrow points to what a room imports, unless another arrow implies it."""
    height = levels(imports)
    rows = [sorted(room for room in height if height[room] == level) for level in range(max(height.values()) + 1)]
    width = max(len(row) for row in rows) * (BOX + GAP) + GAP
    total = len(rows) * ROW + GAP
    place = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (BOX + GAP) + GAP) / 2
        for i, room in enumerate(row):
            place[room] = (left + i * (BOX + GAP) + BOX / 2, total - level * ROW - ROW / 2)
    reachable: dict[str, set[str]] = {}
    for room in sorted(imports, key=height.__getitem__):
        reachable[room] = set(imports[room]).union(*(reachable[other] for other in imports[room]))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {total:.0f}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#7a7a7a"/></marker></defs>',
    ]
    for room, below in imports.items():
        implied = set().union(*(reachable[other] for other in below))
        for other in sorted(below - implied):
            (x1, y1), (x2, y2) = place[room], place[other]
            lines.append(
                f'<path d="M{x1:.0f} {y1 + 17:.0f} C {x1:.0f} {y1 + 50:.0f} {x2:.0f} {y2 - 50:.0f} '
                f'{x2:.0f} {y2 - 18:.0f}" fill="none" stroke="#7a7a7a" stroke-width="1.2" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in place.items():
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - 17:.0f}" width="{BOX}" height="34" rx="6" fill="#dcebf7" '
            f'stroke="#1f5f8b"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-size="14" '
            f'fill="#10222e">{room}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def place_of(file: str, name: str) -> int:
    """The line at which a function, class or method of a file begins."""
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        node = next(n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part)
        body = node.body
    return node.lineno


def with_lines(page: str) -> str:
    """The page with the present line behind every reference of the form `file.py:12` (`name`)."""
    reference = re.compile(r"`(fnn/[\w/]+\.py):\d+` \(`([\w.]+)`\)")
    return reference.sub(lambda m: f"`{m[1]}:{place_of(m[1], m[2])}` (`{m[2]}`)", page)


if __name__ == "__main__":
    PICTURE.write_text(draw(rooms()))
    PAGE.write_text(with_lines(PAGE.read_text()))
