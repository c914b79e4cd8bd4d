"""Pick one-line faults at random, so that no one chooses them with the tests in mind.

    python -m tests.pick_mutants 7 8 > list.json     # seed 7, eight faults in each room

Every place where a maintainer could make a mistake counts: a comparison and its boundary, an arithmetic or logical
operator, half of a condition, a number or a truth value, the order of two arguments, a keyword argument, a statement
that could be forgotten, a check that could be missing. In each room the kinds of fault take turns, so that rare ones
(boundaries, checks) are as frequent as numbers, and of a kind each place has the same chance.
``python -m tests.mutate list.json`` tries the faults.
"""

import ast
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FNN = Path(__file__).parent.parent / "fnn"
COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip


class Mutant(NamedTuple):
    """Lines ``line`` to ``last`` of a file become ``text``. ``reached`` are lines that run if the fault does."""

    file: str
    line: int
    last: int
    text: str
    what: str
    reached: tuple[int, ...]


def room(file: str) -> str:
    """The folder of a file, or the file itself if it lies in fnn/. Private files are one room."""
    if "/" in file:
        return file.split("/")[0]
    return "private" if file.startswith("_") else file.removesuffix(".py")


class Source:
    """A file, and the places in it where something can be replaced."""

    def __init__(self, path: Path):
        self.name = path.relative_to(FNN).as_posix()
        self.bytes = path.read_bytes()
        self.lines = self.bytes.splitlines(keepends=True)
        self.tree = ast.parse(self.bytes)

    def offset(self, line: int, column: int) -> int:
        return sum(map(len, self.lines[: line - 1])) + column

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def replaced(self, start: int, end: int, new: str, what: str, reached: tuple[int, ...] = ()) -> Mutant | None:
        changed = self.bytes[:start] + new.encode() + self.bytes[end:]
        try:
            ast.parse(changed)
        except SyntaxError:
            return None
        first = self.bytes[:start].count(b"\n") + 1
        last = self.bytes[:end].count(b"\n") + 1
        lines = changed.splitlines(keepends=True)[first - 1 : last + len(changed.splitlines()) - len(self.lines)]
        text = b"".join(lines).decode()
        return Mutant(self.name, first, last, text, what, reached or tuple(range(first, last + 1)))

    def mutants(self) -> Iterator[Mutant]:
        skipped = {id(inner) for node in ast.walk(self.tree) for part in not_code(node) for inner in ast.walk(part)}
        for function, node in with_functions(self.tree):
            if id(node) in skipped:
                continue
            for start, end, new, what in self.changes(node):
                old = self.bytes[start:end].decode()
                reached = ()
                if isinstance(function, (ast.FunctionDef, ast.Lambda)) and is_default(function, node):
                    body = function.body if isinstance(function.body, list) else [function.body]
                    reached = tuple(range(body[0].lineno, body[-1].end_lineno + 1))
                made = self.replaced(start, end, new, f"{what}: {old!r} -> {new!r}", reached)
                if made is not None:
                    yield made

    def changes(self, node: ast.AST) -> Iterator[tuple[int, int, str, str]]:
        """Each fault at a node: the first byte, the last, what stands there instead, and the kind of fault."""
        if isinstance(node, ast.Compare):
            left = node.left
            for operator, right in zip(node.ops, node.comparators, strict=True):
                what = "boundary" if isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) else "comparison"
                yield from self.between(left, right, COMPARISONS[type(operator)], what)
                left = right
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not is_text(node):
            yield from self.between(node.left, node.right, OPERATORS[type(node.op)], "operator")
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from self.between(left, right, OPERATORS[type(node.op)], "logic")
                yield self.span(left)[1], self.span(right)[1], "", "condition dropped"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            start, end = self.span(node)
            yield start, end, f"({self.text(node.operand)})", "sign or negation dropped"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            start, end = self.span(node)
            value = node.value
            new = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 or 1.0
            yield start, end, repr(new), "constant"
        elif isinstance(node, ast.Call):
            yield from self.call(node)
        elif isinstance(node, ast.If) and not node.orelse and all(isinstance(part, ast.Raise) for part in node.body):
            yield *self.span(node.test), "False", "check removed"
        elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            yield *self.span(node), "pass", "statement dropped"

    def between(self, left: ast.expr, right: ast.expr, pair: tuple[str, str], what: str) -> Iterator:
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.bytes[start:end].decode()
        if gap.count(pair[0]) == 1 and "#" not in gap:
            yield start, end, gap.replace(*pair), what

    def call(self, node: ast.Call) -> Iterator:
        plain = [part for part in node.args[:2] if not isinstance(part, ast.Starred)]
        alike = len({type(part) for part in plain}) == 1 and not isinstance(plain[0], (ast.Constant, ast.Lambda))
        if len(plain) == 2 and alike and self.text(plain[0]) != self.text(plain[1]) and not is_type_question(node):
            start, end = self.span(plain[0])[0], self.span(plain[1])[1]
            yield start, end, f"{self.text(plain[1])}, {self.text(plain[0])}", "arguments swapped"
        parts = [*node.args, *[keyword.value for keyword in node.keywords]]
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict") and len(parts) > 1:  # zip(..., strict=True) asserts what is so
                before = [part for part in parts if self.span(part)[1] <= self.span(keyword.value)[0]]
                if before:  # from the end of the argument before it
                    start = max(self.span(part)[1] for part in before)
                    yield start, self.span(keyword.value)[1], "", "keyword argument dropped"


def with_functions(tree: ast.AST) -> Iterator[tuple[ast.AST | None, ast.AST]]:
    """Each node with the function in whose signature or body it stands."""
    todo: list[tuple[ast.AST | None, ast.AST]] = [(None, tree)]
    while todo:
        function, node = todo.pop()
        yield function, node
        inner = node if isinstance(node, (ast.FunctionDef, ast.Lambda)) else function
        todo += [(inner, child) for child in ast.iter_child_nodes(node)]


def is_default(function: ast.FunctionDef | ast.Lambda, node: ast.AST) -> bool:
    defaults = [*function.args.defaults, *[part for part in function.args.kw_defaults if part is not None]]
    return any(node is inner for part in defaults for inner in ast.walk(part))


def not_code(node: ast.AST) -> list[ast.AST]:
    """The parts of a node that are not tried: annotations, decorators, sentences of errors, names of types."""
    if isinstance(node, ast.FunctionDef):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        return [part.annotation for part in given if part is not None and part.annotation is not None] + (
            [node.returns] if node.returns else []
        )
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return [node.value]
    if isinstance(node, ast.Raise):
        return [node.exc] if node.exc else []
    if isinstance(node, ast.JoinedStr):
        return [node]
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return [node]
    if isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id[0].isupper() for target in node.targets
    ):
        return [node.value] if "|" in ast.unparse(node.value) or "Literal" in ast.unparse(node.value) else []
    return []


def is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in (node.left, node.right)
    )


def is_type_question(node: ast.Call) -> bool:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    return name in ("isinstance", "issubclass", "getattr", "hasattr", "setattr", "TypeVar", "NamedTuple")


def pick(seed: int, count: int) -> list[Mutant]:
    chosen, by_room = random.Random(seed), {}
    for path in sorted(FNN.rglob("*.py")):
        if path.name != "__init__.py":
            source = Source(path)
            for mutant in source.mutants():
                kinds = by_room.setdefault(room(source.name), {})
                kinds.setdefault(mutant.what.split(":")[0], []).append(mutant)
    found = []
    for name in sorted(by_room):
        kinds, lines = by_room[name], set()
        order = chosen.sample(sorted(kinds), len(kinds))
        while len(lines) < count and any(kinds.values()):
            kind = order[len(lines) % len(order)] if kinds[order[len(lines) % len(order)]] else chosen.choice(order)
            if kinds[kind]:
                mutant = kinds[kind].pop(chosen.randrange(len(kinds[kind])))
                if (mutant.file, mutant.line) not in lines:
                    lines.add((mutant.file, mutant.line))
                    found.append(mutant)
    return found


if __name__ == "__main__":
    print(json.dumps([mutant._asdict() for mutant in pick(int(sys.argv[1]), int(sys.argv[2]))], indent=1))
