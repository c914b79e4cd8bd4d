"""A linear map between trees that is known by its products alone."""

from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from fnn import _torch
from fnn import tree as _tree
from fnn._memory import own
from fnn.linalg.vector_space import VectorSpace, check_like, one_hot
from fnn.tree import Tree

Side = Literal["both", "input", "output"]


class LinearOperator:
    """A matrix whose columns are numbered by one tree and whose rows by another.

    ``matvec`` maps a tree like ``input`` to a tree like ``output``, and ``rmatvec``, the product with the transpose,
    maps back. Of the two trees only structure, shapes, dtypes and devices are read. ``output`` is ``input`` unless
    given. A symmetric operator is its own transpose and needs no ``rmatvec``. All numbers are real.

    ``A @ x`` takes a tree, a flat vector (n,), a matrix of columns (n, k), or another operator; flat vectors
    number the entries as ``fnn.tree.ravel`` does. ``A(x)`` is ``A @ x``. ``A + B, A - B, -A, c * A, A @ B, A.T`` are
    operators again. Sums and multiples of symmetric operators are known to be symmetric, and so are ``A + A.T`` and
    products that read the same from both ends: ``A.T @ A``, ``J.T @ H @ J`` with a symmetric H.

    A product costs what ``matvec`` costs; with k columns it is one ``vmap``, k times the memory. The operator
    itself holds nothing but its functions. Products pass ``fnn.jit``, ``vmap`` and ``grad``.

    Raises ``TypeError`` for leaves that are not real floating tensors, ``ValueError`` for a tree without leaves, and
    in a product for what does not fit.

    >>> A = matrix_operator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    >>> A @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    >>> (2.0 * A).damped(0.5).dense()
    tensor([[4.5000, 2.0000],
            [2.0000, 6.5000]])
    """

    __array_ufunc__ = None  # NumPy then leaves array @ A and array * A to this class

    def __init__(
        self,
        matvec: Callable[[Tree], Tree],
        input: Tree,
        output: Tree | None = None,
        rmatvec: Callable[[Tree], Tree] | None = None,
        symmetric: bool = False,
    ) -> None:
        self.input = input
        self.output = input if output is None else output
        _check_real(self.input, "input")
        _check_real(self.output, "output")
        if symmetric and self.output is not input:
            check_like(self.input, self.output, "a symmetric operator's input", "output")
        self.matvec = matvec
        self.rmatvec = matvec if symmetric else rmatvec
        self.symmetric = symmetric
        self.domain = VectorSpace(self.input)
        self.codomain = self.domain if self.output is self.input else VectorSpace(self.output)
        self.shape = (self.codomain.size, self.domain.size)
        # the factors of a product, each with its transpose: from these A.T @ A is known to be symmetric
        self._factors: tuple[tuple[Callable, Callable | None], ...] = ((matvec, self.rmatvec),)

    @property
    def dtype(self) -> torch.dtype:
        """The promoted dtype of the input's leaves, that of a flat vector."""
        return self.domain.dtype

    @property
    def device(self) -> torch.device:
        """The device of the input's first leaf."""
        return self.domain.device

    @property
    def T(self) -> "LinearOperator":  # noqa: N802 - numpy's and torch's name
        """The transpose. Raises ``ValueError`` for an operator made without ``rmatvec``."""
        if self.symmetric:
            return self
        if self.rmatvec is None:
            raise ValueError("this operator has no transpose; write LinearOperator(..., rmatvec=transposed)")
        transpose = LinearOperator(self.rmatvec, self.output, self.input, self.matvec)
        transpose._factors = _transposed(self._factors)
        return transpose

    def __call__(self, x: Any) -> Any:
        if isinstance(x, LinearOperator):
            return self._compose(x)
        if isinstance(x, Tensor) and not (isinstance(self.input, Tensor) and x.shape == self.input.shape):
            return self._times_tensor(x)
        return own(self._product(self.domain.fit(x, ("operator.input", "vector"))), x)

    __matmul__ = __call__

    def __rmatmul__(self, x: Any) -> Any:
        raise TypeError(f"an operator stands on the left of @, got {type(x).__name__} @ {self!r}; write A.T @ x")

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """``tensor * A`` multiplies the operator; every other function of torch refuses it."""
        name = getattr(func, "__name__", "")
        if len(args) == 2 and isinstance(args[0], Tensor) and isinstance(args[1], LinearOperator):
            if name in ("mul", "__mul__", "__rmul__"):
                return args[1].__mul__(args[0])
            if func is torch.Tensor.__rdiv__:  # traced code may write A / tensor so
                return args[1].__truediv__(args[0])
            if name in ("matmul", "__matmul__", "__rmatmul__"):
                return args[1].__rmatmul__(args[0])
        raise TypeError(
            f"torch's {name} takes tensors, got a LinearOperator; with a tensor x write A @ x, A.T @ x, c * A, or "
            "A + matrix_operator(x)"
        )

    def _product(self, x: Tree) -> Tree:
        """``matvec`` of a tree that fits, its result checked."""
        result = self.matvec(x)
        return self.codomain.fit(result, ("operator.output", "what matvec returned"))

    def _times_tensor(self, x: Tensor) -> Tensor:
        rows, columns = self.shape
        if x.dim() not in (1, 2) or x.shape[0] != columns:
            raise ValueError(
                f"an operator of shape ({rows}, {columns}) multiplies a tree, a vector ({columns},) or a matrix "
                f"({columns}, k), got a tensor of shape {tuple(x.shape)}"
            )
        if x.dtype != self.dtype:
            raise ValueError(
                f"an operator of {self.dtype} multiplies vectors of its dtype, got {x.dtype}; write x.to({self.dtype})"
            )
        return self.times_vector(x) if x.dim() == 1 else self.columns(x)

    def times_vector(self, x: Tensor) -> Tensor:
        """The product with a flat vector of any floating dtype, (n,) -> (rows,), in the dtype of the vector.

        ``A @ x`` of a vector in the operator's dtype; 16-bit operators are iterated on float32 vectors with it.
        """
        return self.codomain.ravel(self._product(self.domain.unravel(x))).to(x.dtype)

    def columns(self, matrix: Tensor, chunk_size: int | None = None) -> Tensor:
        """``A @ matrix`` with ``chunk_size`` columns at once: (n, k) -> (rows, k), in the dtype of the matrix."""
        _check_chunk_size(chunk_size)
        if matrix.shape[1] == 0:
            return matrix.new_zeros((self.shape[0], 0))
        mapped = torch.func.vmap(self.times_vector, 1)
        return torch.cat([mapped(part).T for part in matrix.split(chunk_size or matrix.shape[1], 1)], 1)

    def dense(self, chunk_size: int | None = None) -> Tensor:
        """The matrix (rows, columns): one product per column, ``chunk_size`` (default all) of them at once.

        Memory: rows * columns numbers and chunk_size times that of one product.
        """
        _check_chunk_size(chunk_size)
        n = self.shape[1]
        if n == 0:
            return torch.zeros((self.shape[0], 0), dtype=self.codomain.dtype, device=self.device)
        mapped = torch.func.vmap(lambda x: self.codomain.ravel(self._product(x)))
        size = chunk_size or n
        return torch.cat([mapped(one_hot(self.input, i, min(i + size, n))).T for i in range(0, n, size)], 1)

    def _compose(self, other: "LinearOperator") -> "LinearOperator":
        check_like(self.input, other.output, "left.input", "right.output")
        outer, inner = self.matvec, other.matvec
        back = None
        if self.rmatvec is not None and other.rmatvec is not None:
            first, second = self.rmatvec, other.rmatvec
            back = lambda u: second(first(u))
        factors = self._factors + other._factors
        symmetric = back is not None and _same_factors(factors, _transposed(factors))
        product = LinearOperator(lambda v: outer(inner(v)), other.input, self.output, back, symmetric)
        product._factors = factors
        return product

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            raise TypeError(
                f"an operator is added to another one, got {_tree.describe(other)}; with a matrix write "
                "A + matrix_operator(matrix), with a number A.damped(number)"
            )
        check_like(self.input, other.input, "left.input", "right.input")
        check_like(self.output, other.output, "left.output", "right.output")
        back = None
        if self.rmatvec is not None and other.rmatvec is not None:
            left, right = self.rmatvec, other.rmatvec
            back = lambda u: _tree.add(left(u), right(u))
        one, two = self.matvec, other.matvec
        symmetric = self.symmetric and other.symmetric
        if back is not None and _same_factors(self._factors, _transposed(other._factors)):
            symmetric = True  # A + A.T
        return LinearOperator(lambda v: _tree.add(one(v), two(v)), self.input, self.output, back, symmetric)

    def __mul__(self, factor: float | Tensor) -> "LinearOperator":
        if not (isinstance(factor, Real) or (isinstance(factor, Tensor) and factor.dim() == 0)):
            raise TypeError(
                f"an operator is multiplied with * by a number or a 0-d tensor, got {_tree.describe(factor)}; "
                "for a product write A @ x"
            )
        forward, backward = self.matvec, self.rmatvec
        back = None if backward is None else lambda u: _tree.map(lambda leaf: _scaled(factor, leaf), backward(u))
        return LinearOperator(
            lambda v: _tree.map(lambda leaf: _scaled(factor, leaf), forward(v)),
            self.input,
            self.output,
            back,
            self.symmetric,
        )

    __rmul__ = __mul__

    def __truediv__(self, factor: float | Tensor) -> "LinearOperator":
        return self * (1.0 / factor)

    def __neg__(self) -> "LinearOperator":
        return self * -1.0

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return self + (-other if isinstance(other, LinearOperator) else other)

    __radd__ = __rsub__ = __add__  # called only with something that is not an operator, which is refused

    def damped(self, damping: float | Tensor) -> "LinearOperator":
        """``A + damping * I``. Raises ``ValueError`` for an operator whose input and output differ."""
        check_square(self, "damped")
        return self + identity_operator(self.input) * damping

    def restrict(self, choice: Any, side: Side = "both") -> "LinearOperator":
        """The block of the chosen rows and columns.

        ``choice`` is a function of the dotted path of a leaf, or a tree of bools like the operator's, or a prefix of
        it. ``side`` restricts the columns alone (``"input"``) or the rows alone (``"output"``); ``"both"`` keeps a
        symmetric operator symmetric. Costs a product of the whole operator, with zeros put in.
        Raises ``ValueError`` when nothing is chosen, and for ``"both"`` on different trees.

        >>> params = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> identity_operator(params).restrict(lambda path: path == "w").shape
        (2, 2)
        >>> identity_operator(params).restrict({"w": False, "b": True}, side="output").shape
        (1, 3)
        """
        if side not in ("both", "input", "output"):
            raise ValueError(f"restrict: side is 'both', 'input' or 'output', got {side!r}")
        if side == "both":
            check_square(self, "restrict(side='both')")
        take_input, put_input, small_input = _selection(self.input, None if side == "output" else choice)
        take_output, put_output, small_output = _selection(self.output, None if side == "input" else choice)
        forward, backward = self.matvec, self.rmatvec
        back = None if backward is None else lambda u: take_input(backward(put_output(u)))
        symmetric = self.symmetric and side == "both"
        return LinearOperator(lambda v: take_output(forward(put_input(v))), small_input, small_output, back, symmetric)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` of NumPy arrays on the CPU, for ``eigsh``, ``svds``, ``cg``."""
        try:
            from scipy.sparse.linalg import LinearOperator as ScipyOperator  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("to_scipy needs SciPy; write pip install scipy") from error

        def product(operator: "LinearOperator") -> Callable:
            def apply(vector: Any) -> Any:
                x = torch.as_tensor(vector).reshape(-1).to(operator.device, operator.domain.wide_dtype)
                return operator.times_vector(x).detach().cpu().numpy()

            return apply

        back = None if self.rmatvec is None else product(self.T)
        numpy_dtype = torch.zeros((), dtype=self.domain.wide_dtype).numpy().dtype
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
    return LinearOperator(lambda v: _tree.map(torch.clone, v), like, symmetric=True)


def matrix_operator(matrix: Tensor, symmetric: bool | None = None) -> LinearOperator:
    """A dense matrix (rows, columns) as an operator on vectors.

    Unless ``symmetric`` says so, a square matrix counts as symmetric when it differs from its transpose by no more than
    the rounding of its dtype, ``sqrt(n) * 8 * eps`` times its largest entry, as ``B @ B.T`` does. Under ``vmap`` and
    where a function is traced its entries cannot be read, and it counts as symmetric only with ``symmetric=True``.
    Raises ``ValueError`` for a tensor that is not a matrix, ``TypeError`` for one that is not of real floating numbers.

    >>> matrix_operator(torch.eye(2)).symmetric
    True
    """
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.numel() == 0:
        given = f"shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else f"{type(matrix).__name__}"
        raise ValueError(f"matrix_operator expects a tensor of shape (rows, columns), got {given}")
    if not matrix.is_floating_point():
        raise TypeError(f"matrix_operator expects real floating numbers, got a {matrix.dtype} tensor")
    if matrix.layout != torch.strided:
        matrix = matrix.to_dense()
    square = matrix.shape[0] == matrix.shape[1]
    if symmetric and not square:
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} is not square and cannot be symmetric")
    if symmetric is None:
        symmetric = square and _torch.readable(matrix) and _equals_transpose(matrix.detach())
    return LinearOperator(lambda v: matrix @ v, matrix[0], matrix[:, 0], lambda u: matrix.T @ u, symmetric)


def as_operator(operator: Any, name: str) -> LinearOperator:
    """The operator itself, or a dense matrix as one; ``TypeError`` for anything else."""
    if isinstance(operator, LinearOperator):
        return operator
    if isinstance(operator, Tensor):
        return matrix_operator(operator)
    raise TypeError(f"{name} expects a LinearOperator or a matrix, got {type(operator).__name__}")


def as_symmetric_operator(operator: Any, name: str, instead: str) -> LinearOperator:
    """As :func:`as_operator`, raising ``ValueError`` for an operator that is not known to be symmetric."""
    A = as_operator(operator, name)
    if A.symmetric:
        return A
    if isinstance(operator, Tensor) and A.shape[0] == A.shape[1] and not _torch.readable(operator):
        raise ValueError(
            f"{name} needs a symmetric operator, and under vmap or in a traced function it cannot read the entries "
            "of a matrix; write matrix_operator(matrix, symmetric=True)"
        )
    raise ValueError(
        f"{name} needs a symmetric operator, got {A!r}; {instead}, or state the symmetry of your own product with "
        "LinearOperator(..., symmetric=True)"
    )


def check_square(operator: LinearOperator, name: str) -> None:
    """``ValueError`` unless input and output of an operator are alike."""
    if operator.output is not operator.input:
        check_like(operator.input, operator.output, f"{name}: operator.input", "operator.output")


def _equals_transpose(matrix: Tensor) -> bool:
    largest = matrix.abs().max()
    allowed = 8.0 * len(matrix) ** 0.5 * torch.finfo(matrix.dtype).eps * largest
    return bool(((matrix - matrix.T).abs() <= allowed).all())  # False where an entry is nan


def _scaled(factor: float | Tensor, leaf: Tensor) -> Tensor:
    return leaf * (factor.to(leaf.dtype) if isinstance(factor, Tensor) else factor)


def _transposed(factors: tuple) -> tuple:
    return tuple((back, forward) for forward, back in reversed(factors))


def _same_factors(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(
        a is b for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def _check_real(tree: Tree, name: str) -> None:
    leaves, treedef = _tree.flatten(tree)
    if not leaves:
        raise ValueError(f"a LinearOperator needs an {name} tree with at least one tensor, got an empty tree")
    for path, leaf in zip(treedef.keystrs, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"a LinearOperator maps trees of tensors, but {name}{path} is {leaf!r}")
        if not leaf.is_floating_point():
            raise TypeError(
                f"a LinearOperator maps trees of real floating numbers, but {name}{path} is a {leaf.dtype} tensor"
            )


def _check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is a positive number of columns, got {chunk_size}")


def _selection(like: Tree, choice: Any) -> tuple[Callable, Callable, Tree]:
    """A function that takes the chosen leaves out of a tree, one that puts them back among zeros, and their tree."""
    if choice is None:
        return (lambda tree: tree), (lambda tree: tree), like
    leaves, treedef = _tree.flatten(like)
    chosen = [bool(value) for value in _tree.leaf_values(choice, like)]
    if not any(chosen):
        raise ValueError(f"restrict: nothing is chosen; the paths are {list(treedef.paths)}")
    small = _tree.partition(like, choice)[0]
    small_treedef = _tree.structure(small)

    def take(tree: Tree) -> Tree:
        found = treedef.flatten_up_to(tree)
        return small_treedef.unflatten([leaf for leaf, wanted in zip(found, chosen, strict=True) if wanted])

    def put(part: Tree) -> Tree:
        given = iter(small_treedef.flatten_up_to(part))
        return treedef.unflatten(
            [next(given) if wanted else torch.zeros_like(leaf) for leaf, wanted in zip(leaves, chosen, strict=True)]
        )

    return take, put, small
