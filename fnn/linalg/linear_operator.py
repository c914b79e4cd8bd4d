"""A linear map between trees that is known by its products alone."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fnn import tree as _tree
from fnn.tree import Tree

Side = Literal["both", "input", "output"]


class LinearOperator:
    """A matrix whose columns are numbered by one tree and whose rows by another.

    ``matvec`` maps a tree like ``input`` to a tree like ``output`` and ``rmatvec``, its transpose, back. Of
    the two skeletons only structure, shapes, dtypes and devices are read. ``output`` is ``input`` unless
    given. A symmetric operator is its own transpose and needs no ``rmatvec``.

    ``A @ x`` takes a tree, a flat vector (n,), a matrix of columns (n, k), or another operator; flat vectors
    number the entries as ``fnn.tree.ravel`` does. ``A + B, A - B, -A, c * A, A @ B, A.T`` are operators again.

    A product costs what ``matvec`` costs; with k columns it is one ``vmap``, k times the memory. The operator
    itself holds nothing but its functions. Products pass ``fnn.jit``, ``vmap`` and ``grad``. ``A(x)`` is ``A @ x``;
    compiled code writes it where A is square and not known to be symmetric, and for trees on torch before 2.15.

    >>> A = matrix_operator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    >>> A @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    >>> (2.0 * A).damped(0.5).dense()
    tensor([[4.5000, 2.0000],
            [2.0000, 6.5000]])
    """

    def __init__(
        self,
        matvec: Callable[[Tree], Tree],
        input: Tree,
        output: Tree | None = None,
        rmatvec: Callable[[Tree], Tree] | None = None,
        symmetric: bool = False,
    ) -> None:
        if not _tree.leaves(input):
            raise ValueError("a LinearOperator needs an input tree with at least one tensor, got an empty tree")
        self.matvec = matvec
        self.rmatvec = matvec if symmetric else rmatvec
        self.input = input
        self.output = input if output is None else output
        self.symmetric = symmetric
        self.shape = (_tree.size(self.output), _tree.size(self.input))
        self._transpose: LinearOperator | None = self if symmetric else None

    @property
    def dtype(self) -> torch.dtype:
        """The promoted dtype of the input's leaves, that of a flat vector."""
        dtype = _tree.leaves(self.input)[0].dtype
        for leaf in _tree.leaves(self.input):
            dtype = torch.promote_types(dtype, leaf.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of the input's first leaf."""
        return _tree.leaves(self.input)[0].device

    @property
    def T(self) -> "LinearOperator":  # noqa: N802 - numpy's and torch's name
        """The transpose. Raises ``ValueError`` for an operator made without ``rmatvec``."""
        if self._transpose is None:
            if self.rmatvec is None:
                raise ValueError("this operator has no transpose; write LinearOperator(..., rmatvec=transposed)")
            self._transpose = LinearOperator(self.rmatvec, self.output, self.input, self.matvec)
            self._transpose._transpose = self
        return self._transpose

    def __matmul__(self, x: Any) -> Any:
        return self(x)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Tensor * A, and in compiled code A @ tensor, which torch.compile hands over as tensor.matmul(A)."""
        name = getattr(func, "__name__", "")
        if len(args) == 2 and isinstance(args[0], Tensor):
            x, operator = args
            if name in ("mul", "__mul__", "__rmul__"):
                return operator.__mul__(x)
            if func is torch.Tensor.__rdiv__:
                return operator.__truediv__(x)
            if name in ("matmul", "__matmul__", "__rmatmul__"):
                return operator._either_side(x)
        raise TypeError(
            f"torch's {name} takes tensors, got a LinearOperator; with a tensor x write A @ x, A.T @ x, c * A, or "
            "A + matrix_operator(x)"
        )

    def __rmatmul__(self, x: Any) -> Any:
        raise TypeError(f"an operator stands on the left of @, got {type(x).__name__} @ {self!r}; write A.T @ x")

    def _either_side(self, x: Tensor) -> Any:
        rows, columns = self.shape
        left = x.shape[:1] == (columns,) or (isinstance(self.input, Tensor) and x.shape == self.input.shape)
        right = x.shape[-1:] == (rows,) and not (self.symmetric and x.dim() == 1)
        if not torch.compiler.is_compiling() or not left:
            return self.__rmatmul__(x)
        if right:
            raise TypeError(
                f"torch.compile does not say on which side of {self!r} a tensor {tuple(x.shape)} stands, and both fit; "
                "inside fnn.jit write A(x) for A @ x"
            )
        return self(x)

    def __call__(self, x: Any) -> Any:
        if isinstance(x, LinearOperator):
            return self._compose(x)
        if isinstance(x, Tensor) and not (isinstance(self.input, Tensor) and x.shape == self.input.shape):
            return self._flat(x)
        check_like(self.input, x, "operator.input", "vector")
        return self.matvec(_tree.structure(self.input).unflatten(_tree.leaves(x)))

    def _flat(self, x: Tensor) -> Tensor:
        rows, columns = self.shape
        if x.dim() not in (1, 2) or x.shape[0] != columns:
            raise ValueError(
                f"an operator of shape ({rows}, {columns}) multiplies a tree, a vector ({columns},) or a matrix "
                f"({columns}, k), got a tensor of shape {tuple(x.shape)}"
            )
        product = lambda vector: ravel(self.matvec(unravel(vector, self.input)))
        if x.dim() == 1:
            return product(x)
        return x.new_zeros((rows, 0)) if x.shape[1] == 0 else torch.func.vmap(product, 1, 1)(x)

    def _compose(self, other: "LinearOperator") -> "LinearOperator":
        check_like(self.input, other.output, "left.input", "right.output")
        inner, outer = other.matvec, self.matvec
        back = None
        if self.rmatvec is not None and other.rmatvec is not None:
            left, right = self.rmatvec, other.rmatvec
            back = lambda u: right(left(u))
        gram = self._transpose is other and other._transpose is self  # A.T @ A and A @ A.T
        return LinearOperator(lambda v: outer(inner(v)), other.input, self.output, back, symmetric=gram)

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            return NotImplemented
        check_like(self.input, other.input, "left.input", "right.input")
        check_like(self.output, other.output, "left.output", "right.output")
        back = None
        if self.rmatvec is not None and other.rmatvec is not None:
            left, right = self.rmatvec, other.rmatvec
            back = lambda u: _tree.add(left(u), right(u))
        one, two = self.matvec, other.matvec
        symmetric = self.symmetric and other.symmetric
        return LinearOperator(lambda v: _tree.add(one(v), two(v)), self.input, self.output, back, symmetric)

    def __mul__(self, factor: float | Tensor) -> "LinearOperator":
        if isinstance(factor, LinearOperator) or (isinstance(factor, Tensor) and factor.dim() != 0):
            raise TypeError("an operator is multiplied with * by a number or a 0-d tensor; for a product write A @ x")
        forward, backward = self.matvec, self.rmatvec
        back = None if backward is None else lambda u: _tree.scale(factor, backward(u))
        return LinearOperator(lambda v: _tree.scale(factor, forward(v)), self.input, self.output, back, self.symmetric)

    __rmul__ = __mul__

    def __truediv__(self, factor: float | Tensor) -> "LinearOperator":
        return self.__mul__(1.0 / factor)

    def __neg__(self) -> "LinearOperator":
        return self * -1.0

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return self + (-other)

    def damped(self, damping: float | Tensor) -> "LinearOperator":
        """``A + damping * I``. Raises ``ValueError`` for an operator whose input and output differ."""
        self._check_square("damped")
        return self + identity_operator(self.input).__mul__(damping)  # traces on every version

    def _check_square(self, name: str) -> None:
        if self.output is not self.input:
            check_like(self.input, self.output, f"{name}: operator.input", "operator.output")

    def restrict(self, predicate: Callable[[str], bool], side: Side = "both") -> "LinearOperator":
        """The block of rows and columns whose dotted path fulfils the predicate.

        ``side`` restricts the columns alone (``"input"``) or the rows alone (``"output"``); ``"both"`` keeps a
        symmetric operator symmetric. Costs a product of the whole operator, with zeros put in.
        Raises ``ValueError`` when no path fulfils the predicate, and for ``"both"`` on different trees.

        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> identity_operator(params).restrict(lambda path: path == "w").shape
        (2, 2)
        """
        if side not in ("both", "input", "output"):
            raise ValueError(f"restrict: side is 'both', 'input' or 'output', got {side!r}")
        if side == "both":
            self._check_square("restrict(side='both')")
        take_input, put_input, small_input = _selection(self.input, predicate if side != "output" else None)
        take_output, put_output, small_output = _selection(self.output, predicate if side != "input" else None)
        forward, backward = self.matvec, self.rmatvec
        back = None if backward is None else lambda u: take_input(backward(put_output(u)))
        return LinearOperator(
            lambda v: take_output(forward(put_input(v))),
            small_input,
            small_output,
            back,
            self.symmetric and side == "both",
        )

    def dense(self, chunk_size: int | None = None) -> Tensor:
        """The matrix (rows, columns): one product per column, ``chunk_size`` (default all) of them at once.

        Memory: rows * columns numbers and chunk_size times that of one product.
        """
        columns = self.shape[1]
        basis = torch.eye(columns, dtype=self.dtype, device=self.device)
        return self.columns(basis, chunk_size)

    def columns(self, matrix: Tensor, chunk_size: int | None = None) -> Tensor:
        """``A @ matrix`` with ``chunk_size`` columns at once: (n, k) -> (rows, k)."""
        if chunk_size is None:
            return self._flat(matrix)
        if chunk_size < 1:
            raise ValueError(f"chunk_size is a positive number of columns, got {chunk_size}")
        return torch.cat([self._flat(part) for part in matrix.split(chunk_size, 1)], 1)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` of numpy arrays on the CPU, for ``eigsh``, ``svds``, ``cg``."""
        try:
            from scipy.sparse.linalg import LinearOperator as ScipyOperator  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("to_scipy needs SciPy; write pip install scipy") from error

        def product(operator: "LinearOperator") -> Callable:
            def apply(vector: Any) -> Any:
                x = torch.as_tensor(vector).reshape(-1).to(operator.device, operator.dtype)
                return (operator @ x).detach().cpu().numpy()

            return apply

        back = None if self.rmatvec is None else product(self.T)
        numpy_dtype = torch.zeros((), dtype=self.dtype).numpy().dtype
        make: Any = ScipyOperator  # its constructor picks a subclass, which type checkers cannot follow
        return make(self.shape, matvec=product(self), rmatvec=back, dtype=numpy_dtype)

    def __repr__(self) -> str:
        kind = "symmetric " if self.symmetric else ""
        return f"<{kind}{type(self).__name__} {self.shape[0]} x {self.shape[1]}, {self.dtype}>"


def identity_operator(like: Tree) -> LinearOperator:
    """The identity on trees like the given one.

    >>> identity_operator(torch.zeros(2)) @ torch.tensor([1.0, 2.0])
    tensor([1., 2.])
    """
    return LinearOperator(lambda v: v, like, symmetric=True)


def matrix_operator(matrix: Tensor) -> LinearOperator:
    """A dense matrix (rows, columns) as an operator on vectors, symmetric when the matrix equals its transpose.

    >>> matrix_operator(torch.eye(2)).symmetric
    True
    """
    if not isinstance(matrix, Tensor) or matrix.dim() != 2:
        given = f"shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else f"{type(matrix).__name__}"
        raise ValueError(f"matrix_operator expects a tensor of shape (rows, columns), got {given}")
    symmetric = matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, matrix.T)
    return LinearOperator(lambda v: matrix @ v, matrix[0], matrix[:, 0], lambda u: matrix.T @ u, symmetric)


def as_operator(operator: Any, name: str) -> LinearOperator:
    """The operator itself, or a dense matrix as one; ``TypeError`` for anything else."""
    if isinstance(operator, LinearOperator):
        return operator
    if isinstance(operator, Tensor):
        return matrix_operator(operator)
    raise TypeError(f"{name} expects a LinearOperator or a matrix, got {type(operator).__name__}")


def check_symmetric(operator: LinearOperator, name: str, instead: str) -> None:
    """``ValueError`` for an operator that is not known to be symmetric."""
    if not operator.symmetric:
        raise ValueError(
            f"{name} needs a symmetric operator, got {operator!r}; {instead}, or state the symmetry of your own "
            "product with LinearOperator(..., symmetric=True)"
        )


def check_like(expected: Tree, given: Tree, expected_name: str, given_name: str) -> None:
    """``ValueError`` naming the path where structure, shape or dtype of two trees differ."""
    _tree.check_same_structure(expected, given, (expected_name, given_name))
    paths = _tree.keystrs(expected)
    for path, want, have in zip(paths, _tree.leaves(expected), _tree.leaves(given), strict=True):
        if want.shape != have.shape or want.dtype != have.dtype:
            raise ValueError(
                f"{given_name}{path} has shape {tuple(have.shape)} and {have.dtype}, expected "
                f"{tuple(want.shape)} and {want.dtype} as in {expected_name}"
            )


def ravel(tree: Tree) -> Tensor:
    """The entries of a tree as one vector, in the order of ``fnn.tree.ravel``."""
    return _tree.ravel(tree)[0]


def unravel(vector: Tensor, like: Tree) -> Tree:
    """A vector as a tree like the given one."""
    parts = _tree.leaves(like)
    pieces = vector.split([leaf.numel() for leaf in parts])
    return _tree.structure(like).unflatten(
        [piece.reshape(leaf.shape).to(leaf.dtype) for piece, leaf in zip(pieces, parts, strict=True)]
    )


def _selection(like: Tree, predicate: Callable[[str], bool] | None) -> tuple[Callable, Callable, Tree]:
    """How to take the chosen leaves out of a tree, put them back among zeros, and what they look like."""
    if predicate is None:
        return (lambda tree: tree), (lambda tree: tree), like
    wanted = [bool(predicate(path)) for path in _tree.paths(like)]
    if not any(wanted):
        raise ValueError(f"restrict: no path fulfils the predicate; the paths are {_tree.paths(like)}")
    parts = _tree.leaves(like)

    def take(tree: Tree) -> Tree:
        return _tree.partition(tree, predicate)[0]

    def put(small: Tree) -> Tree:
        given = iter(_tree.leaves(small))
        return _tree.structure(like).unflatten(
            [next(given) if want else torch.zeros_like(leaf) for want, leaf in zip(wanted, parts, strict=True)]
        )

    return take, put, take(like)
