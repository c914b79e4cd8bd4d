"""Count what each call on the sheet of the Jacobian book costs: ``python docs/cost_sheet.py``.

The page ``docs/jacobians/sheet.md`` lists the calls. Its first block makes the names that the calls use, here for a
perceptron of eight equal layers, so that no single layer decides; the tests run the calls for the page's own network.
Costs are in calls of f: the floating-point operations of matrix products, as torch counts them, over those of f.
``python -m recipes.bench jacobian_costs`` measures the products, too.
"""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.flop_counter import FlopCounterMode

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # the library of this clone, installed or not

import fnn  # noqa: E402

PAGE = DOCS / "jacobians" / "sheet.md"
Shapes = dict[str, tuple[int, ...]]  # the shape of each leaf by its path


class Row(NamedTuple):
    call: str
    takes: str
    gives: str
    by_params: str  # costs as the page writes them, "2 + 2 k", or empty
    by_inputs: str


def rows() -> list[Row]:
    """The rows of the tables whose head begins with "call"."""
    found = []
    for table in re.findall(r"^\| call \|.*?(?=\n\n)", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        for line in table.splitlines()[2:]:
            call, _, takes, gives, by_params, by_inputs, _ = (cell.strip(" `") for cell in line.strip("|").split("|"))
            found.append(Row(call, takes, gives, by_params, by_inputs))
    return found


def names_of_the_page(*sizes: int, samples: int = 32) -> dict[str, Any]:
    """The names that the first block of the page makes, with another network where sizes are given."""
    block = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0]
    if sizes:
        block = re.sub(r"mlp\([\d, ]+", f"mlp({', '.join(map(str, sizes))}, ", block)
        block = re.sub(r"^batch = .*$", "batch = drawn", block, flags=re.MULTILINE)
    drawn = (
        fnn.random.normal(fnn.random.key(5), (samples, sizes[0] if sizes else 1)),
        fnn.random.randint(fnn.random.key(6), (samples,), 0, sizes[-1] if sizes else 1),
    )
    names: dict[str, Any] = {"drawn": drawn}
    exec(compile(block, str(PAGE), "exec"), names)
    return names


def by_inputs(names: dict[str, Any]) -> dict[str, Any]:
    """The same names with the images in the place of the params."""
    model, params, (images, labels) = names["model"], names["params"], names["batch"]
    f = lambda x: model.apply(params, x)
    tangents = fnn.random.normal(fnn.random.key(7), (names["k"], *images.shape))
    return names | {
        "f": f,
        "x": images,
        "L": lambda x: fnn.losses.cross_entropy(f(x), labels),
        "losses": lambda x: fnn.losses.cross_entropy(f(x), labels, reduction="none"),
        "v": tangents[0],
        "V": tangents,
        "n": images.numel(),
    }


def shapes_of(tree: Any) -> Shapes:
    return {path: tuple(leaf.shape) for path, leaf in fnn.tree.items(tree)}


def expected(words: str, names: dict[str, Any]) -> list[Shapes]:
    """The shapes that a cell such as ``f(x), (k, x)`` stands for, one set for each thing."""

    def read(node: ast.expr) -> Shapes:
        if not isinstance(node, ast.Tuple):
            value = eval(ast.unparse(node), names)
            return {"": (value,)} if isinstance(value, int) else shapes_of(value)
        shapes: Shapes = {"": ()}
        for part in node.elts:
            inner = read(part)
            shapes = {".".join(filter(None, (a, b))): shapes[a] + inner[b] for a in shapes for b in inner}
        return shapes

    (body,) = ast.parse(f"[{words}]").body
    assert isinstance(body, ast.Expr)
    assert isinstance(body.value, ast.List)
    return [read(node) for node in body.value.elts]


def operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def counted(call: str, names: dict[str, Any]) -> float:
    """The operations of a call over those of f, or of r where the call is about a chain y."""
    one = "r(y)" if "(y)" in call else "f(x)"
    return operations(lambda: eval(call, names)) / operations(lambda: eval(one, names))


def claimed(cost: str, names: dict[str, Any]) -> float:
    """The number that a cost such as ``2 + 2 k`` stands for."""
    return eval(re.sub(r"(\d) ([kmns])", r"\1 * \2", cost), names)


def main() -> None:
    names = names_of_the_page(*[6] * 9, samples=4)
    print("| call | by params: stated | counted | by inputs: stated | counted |")
    print("|---|---|---|---|---|")
    for row in rows():
        cells = [f"`{row.call}`"]
        for cost, given in ((row.by_params, names), (row.by_inputs, by_inputs(names))):
            cells += [cost, f"{counted(row.call, given):.1f}" if cost else ""]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
