"""Functions with a derivative of their own, from ``detach`` alone: no autograd.Function, so they nest and compile."""

from collections.abc import Callable
from typing import Any

from fnn import tree as _tree
from fnn.jacobian.arguments import check_primals
from fnn.linalg.vector_space import check_like
from fnn.tree import Tree

# nodes and weights of Gauss and Legendre's quadrature on [0, 1]
_QUADRATURE = {
    1: ((0.5,), (1.0,)),
    2: ((0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2), (0.5, 0.5)),
    3: ((0.5 - 0.6**0.5 / 2, 0.5, 0.5 + 0.6**0.5 / 2), (5 / 18, 8 / 18, 5 / 18)),
}


def stop_gradient(tree: Tree) -> Tree:
    """The same values, constant to every derivative of every order and mode.

    >>> import torch
    >>> torch.func.grad(lambda x: x * stop_gradient(x))(torch.tensor(3.0))
    tensor(3.)
    """
    return _tree.map(lambda leaf: leaf.detach(), tree)


def straight_through(f: Callable, surrogate: Callable = lambda x: x) -> Callable:
    """A function with the values of ``f`` and the derivatives, of every order, of ``surrogate`` (Bengio et al., 2013).

    The identity unless given; both map a tree to trees of the same shapes. Costs both. Raises ``ValueError`` naming the
    path where their outputs differ.

    >>> import torch
    >>> rounded = straight_through(torch.round)
    >>> rounded(torch.tensor(1.7)), torch.func.grad(lambda x: rounded(x) ** 2)(torch.tensor(1.7))
    (tensor(2.), tensor(4.))
    """

    def estimated(x: Tree) -> Tree:
        values, carrier = stop_gradient(f(stop_gradient(x))), surrogate(x)
        check_like(values, carrier, "output of the function", "output of the surrogate")
        return _tree.map(lambda value, path: value + (path - path.detach()), values, carrier)

    return estimated


def with_derivative(f: Callable, derivative: Callable, order: int = 2) -> Callable:
    """The function ``f`` whose derivative is what ``derivative(primals, tangents)`` says, up to ``order``.

    ``derivative`` is the rule J v: linear in the tuple ``tangents``, differentiable in the tuple ``primals``, made of
    torch operations, with a result like ``f(*primals)``. With s = stop_gradient(x) and d = x - s, which is zero,

        y = f(s) + integral over t from 0 to 1 of derivative((s + t d,), (d,))

    has the value of f and the rule as its derivative; Gauss-Legendre quadrature with k nodes makes the derivatives of y
    right to order 2 k in forward mode, reverse mode and any mixture, mapped and compiled. Above ``order`` (at most 6)
    they are wrong without a word. A rule that is no true derivative, such as a clipped one, has its second derivative
    symmetrised. Costs one call of f and ceil(order / 2) of the rule. The values of f are exact unless the rule's is
    infinite or nan there. Raises ``ValueError`` for another order and for a rule whose result does not fit f's.

    >>> import torch
    >>> softplus = with_derivative(lambda x: (1 + x.exp()).log(), lambda p, t: torch.sigmoid(p[0]) * t[0])
    >>> torch.func.grad(torch.func.grad(softplus))(torch.tensor(0.0))
    tensor(0.2500)
    """
    if not 1 <= order <= 6:
        raise ValueError(f"with_derivative makes derivatives up to an order between 1 and 6, got order={order}")
    nodes, weights = _QUADRATURE[(order + 1) // 2]

    def function(*primals: Tree) -> Any:
        check_primals(primals, "with_derivative")
        still = stop_gradient(primals)
        zero = _tree.sub(primals, still)
        value = stop_gradient(f(*still))
        for node, weight in zip(nodes, weights, strict=True):
            place = _tree.map(lambda s, d, node=node: s + node * d, still, zero)
            slope = derivative(place, zero)
            check_like(value, slope, "output of the function", "output of its derivative")
            value = _tree.map(lambda y, dy, weight=weight: y + weight * dy, value, slope)
        return value

    return function
