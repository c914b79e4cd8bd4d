"""PyTorch's autograd tutorial, a Jacobian that is not symmetric, and the sentences that docs/jacobian.md quotes."""

import re
from pathlib import Path

import pytest
import torch

import fnn
from fnn import jvp, vjp

PAGE = Path(__file__).parents[2] / "docs" / "jacobian.md"
PUBLISHED = torch.tensor(
    [
        [4.0, 2.0, 2.0, 2.0, 2.0],
        [2.0, 4.0, 2.0, 2.0, 2.0],
        [2.0, 2.0, 4.0, 2.0, 2.0],
        [2.0, 2.0, 2.0, 4.0, 2.0],
        [2.0, 2.0, 2.0, 2.0, 4.0],
    ]
)


@pytest.mark.parametrize("rows", [5, 4])  # the tutorial had eye(5), and has eye(4, 5)
def test_the_tutorials_gradient_is_the_same_on_every_call(rows):
    inp = torch.eye(rows, 5)
    out, pullback = vjp(lambda x: (x + 1).pow(2).t(), inp)
    cotangent = torch.ones_like(out)
    first = pullback(cotangent)[0]
    assert torch.equal(first, PUBLISHED[:rows])
    assert torch.equal(pullback(cotangent)[0], PUBLISHED[:rows])  # torch's .grad would hold twice that
    assert torch.equal(fnn.tree.add(first, pullback(cotangent)[0]), 2 * PUBLISHED[:rows])
    assert torch.equal(first, PUBLISHED[:rows])
    assert torch.equal(inp, torch.eye(rows, 5))
    assert inp.grad is None


def test_the_tutorials_gradient_compiles():
    compiled = fnn.jit(lambda x: vjp(lambda x: (x + 1).pow(2).t(), x)[1](torch.ones(5, 5))[0])
    assert torch.equal(compiled(torch.eye(5)), PUBLISHED)
    assert torch.equal(compiled(torch.eye(5)), PUBLISHED)


def test_a_jacobian_that_is_not_symmetric():
    def f(x):  # J = [[x1, x0], [0, 1], [2 x0, 0]]
        return torch.stack([x[0] * x[1], x[1], x[0] ** 2])

    x = torch.tensor([2.0, 3.0])
    matrix = torch.tensor([[3.0, 2.0], [0.0, 1.0], [4.0, 0.0]])
    assert torch.equal(fnn.jacobian.dense_jacobian(f)(x), matrix)
    assert torch.equal(jvp(f, (x,), (torch.tensor([1.0, 10.0]),))[1], torch.tensor([23.0, 10.0, 4.0]))
    assert torch.equal(vjp(f, x)[1](torch.tensor([1.0, 10.0, 100.0]))[0], torch.tensor([403.0, 12.0]))
    square = lambda x: f(x)[:2]
    ones = torch.ones(2)
    assert torch.equal(jvp(square, (x,), (ones,))[1], torch.tensor([5.0, 1.0]))
    assert torch.equal(vjp(square, x)[1](ones)[0], torch.tensor([3.0, 3.0]))


def test_the_page_quotes_the_sentences():
    text = PAGE.read_text()
    names: dict = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), names)
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", text.split("## Error sentences")[1], flags=re.MULTILINE)
    assert len(rows) == 15
    for call, sentence in rows:
        words = ".*".join(re.escape(part) for part in sentence.split(" ..."))
        with pytest.raises((TypeError, ValueError, RuntimeError), match=f"^{words}$"):
            eval(call, names)
