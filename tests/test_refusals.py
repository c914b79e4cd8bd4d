"""Conditions of refusals, each part of them alone: what is wrong in one respect only is refused by its sentence."""

# ruff: noqa: E501 (one mistake a line)

import inspect
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import fnn
from fnn import curvature, gradients, interop, jacobian, layers, linalg, losses, metrics, optim, random, training, tree
from fnn.data import transforms
from fnn.optim import schedules
from tests.test_odd_values import is_sentence

KEY = random.key(0)
ONES = torch.ones
INTEGERS = torch.tensor([0, 1])
BOOLS = torch.tensor([True, False])
COMPLEX = torch.ones(2, dtype=torch.complex64)
ATTENTION = layers.multi_head_attention(4, 2)
PARAMS = ATTENTION.init(KEY)
CAUSAL = layers.multi_head_attention(4, 2, causal=True)
CACHE = layers.attention_cache(1, 3, 4, 2)
ENCODER = layers.transformer_encoder(layers.transformer_encoder_layer(4, 2, 8, causal=True), 2)
LSTM = layers.lstm(2, 3)
CONFUSION = torch.eye(3, dtype=torch.int64)


def apply(layer: Any, *inputs: Any, **options: Any) -> Any:
    return layer.apply(layer.init(KEY), *inputs, **options)


def square(params: Tensor, batch: Tensor) -> Tensor:
    return ((params * batch) ** 2).sum()


def ctc(log_probs: Tensor, targets: Any, input_lengths: Any, target_lengths: Any) -> Tensor:
    return losses.ctc(log_probs.log_softmax(-1), targets, input_lengths, target_lengths)


class WithoutContext(torch.autograd.Function):
    """In the older form, which torch.func cannot transform."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def saved() -> Path:
    """A file with one leaf, w."""
    path = Path(tempfile.mkdtemp()) / "params.safetensors"
    fnn.checkpoint.save(path, {"w": ONES(1)})
    return path


# the start of the sentence, and calls that are each wrong in one way
REFUSED: dict[str, tuple[str, list[Callable[[], Any]]]] = {
    "labels of confusion_matrix": ("confusion_matrix", [
        lambda: metrics.confusion_matrix(ONES(2, 3), ONES(2)), lambda: metrics.confusion_matrix(ONES(2, 3), COMPLEX), lambda: metrics.confusion_matrix(ONES(2, 3), BOOLS),
    ]),
    "a confusion matrix": ("scores expects integer counts", [
        lambda: metrics.scores(CONFUSION[0]), lambda: metrics.scores(CONFUSION[:2]), lambda: metrics.scores(CONFUSION.float()), lambda: metrics.scores(CONFUSION[None]),
    ]),
    "roc_auc": ("roc_auc", [
        lambda: metrics.roc_auc(ONES(2, 1), INTEGERS[:, None]), lambda: metrics.roc_auc(ONES(3), INTEGERS), lambda: metrics.roc_auc(ONES(()), torch.tensor(1)),
    ]),
    "logits of accuracy": ("got", [lambda: metrics.accuracy(ONES(()), torch.tensor(1)), lambda: metrics.accuracy(ONES(2, 3), ONES(3))]),
    "targets of cross_entropy": ("cross_entropy", [
        lambda: losses.cross_entropy(ONES(2, 3), COMPLEX), lambda: losses.cross_entropy(ONES(2, 3), BOOLS), lambda: losses.cross_entropy(ONES(2, 3), INTEGERS[:1]),
        lambda: losses.cross_entropy(ONES(2, 3), INTEGERS, ONES(3, 1)), lambda: losses.cross_entropy(ONES(2, 3), INTEGERS, ONES(2)),
    ]),
    "weights of mse": ("mse", [lambda: losses.mse(ONES(2), ONES(2), weight=ONES(1)), lambda: losses.mse(ONES(2), ONES(2), weight=ONES(2, 1))]),
    "complex losses": ("complex", [lambda: losses.mse(COMPLEX, COMPLEX), lambda: losses.huber(COMPLEX, COMPLEX), lambda: losses.bce(COMPLEX, COMPLEX)]),
    "ctc": ("ctc", [
        lambda: ctc(ONES(4, 2, 3), ONES(3, 1).long(), [4, 4], [1, 1]), lambda: ctc(ONES(4, 2, 3), ONES(2, 1, 1).long(), [4, 4], [1, 1]),
        lambda: ctc(ONES(4, 2, 3), ONES(2, 1).long(), ONES(2) * 4, [1, 1]), lambda: ctc(ONES(4, 2, 3), ONES(2, 1).long(), [4, 4, 4], [1, 1]),
        lambda: ctc(ONES(4, 2, 3), ONES(2, 1).long(), torch.tensor([[4, 4]]), [1, 1]),
    ]),
    "multi_margin": ("multi_margin", [
        lambda: losses.multi_margin(ONES(2, 3, 1), INTEGERS), lambda: losses.multi_margin(ONES(2, 3), INTEGERS[:1]), lambda: losses.multi_margin(ONES(2, 3), ONES(2)),
    ]),
    "multilabel_margin": ("multilabel_margin", [
        lambda: losses.multilabel_margin(ONES(1, 2, 3), ONES(1, 2, 3).long()), lambda: losses.multilabel_margin(ONES(2, 3), ONES(2, 3)),
        lambda: losses.multilabel_margin(ONES(2, 3), ONES(2, 2).long()),
    ]),
    "cosine_embedding": ("cosine_embedding", [
        lambda: losses.cosine_embedding(ONES(1, 2, 3), ONES(1, 2, 3), ONES(1, 2)), lambda: losses.cosine_embedding(ONES(2, 3), ONES(2, 3), ONES(3)),
    ]),
    "groups of conv1d": ("must divide", [lambda: layers.conv1d(3, 4, 1, groups=2), lambda: layers.conv1d(4, 3, 1, groups=2)]),
    "last axis": ("linear expects inputs", [lambda: apply(layers.linear(3, 2), ONES(())), lambda: apply(layers.linear(3, 2), ONES(4))]),
    "axes of conv1d": ("conv1d expects inputs", [lambda: apply(layers.conv1d(2, 2, 1), ONES(4)), lambda: apply(layers.conv1d(2, 2, 1), ONES(1, 3, 4)), lambda: apply(layers.conv1d(2, 2, 1), ONES(1, 1, 2, 4))]),
    "axes of group_norm": ("group_norm expects inputs", [lambda: apply(layers.group_norm(1, 2), ONES(2)), lambda: apply(layers.group_norm(1, 2), ONES(2, 3))]),
    "geglu": ("geglu", [lambda: layers.geglu(ONES(())), lambda: layers.geglu(ONES(2, 3))]),
    "glu": ("glu", [lambda: layers.glu(ONES(())), lambda: layers.glu(ONES(2, 3))]),
    "fold": ("fold expects inputs", [lambda x=x: apply(layers.fold(2, 2), x) for x in (ONES(4), ONES(1, 1, 4, 1), ONES(1, 3, 1), ONES(1, 4, 2))]),
    "fractional_max_pool2d": ("expects", [
        lambda: layers.fractional_max_pool2d(2), lambda: layers.fractional_max_pool2d(2, 2, 0.5), lambda: layers.fractional_max_pool2d(2, output_ratio=(0.5,)),
        lambda: layers.fractional_max_pool2d(2, output_ratio=(0.5, 1.0)),
    ]),
    "interpolate": ("interpolate", [
        lambda: layers.interpolate(ONES(1, 1, 4), 2, align_corners=False), lambda: layers.interpolate(ONES(1, 1, 4, 4), 2, antialias=True),
        lambda: layers.interpolate(ONES(1, 1, 4), 2, recompute_scale_factor=True), lambda: layers.interpolate(ONES(4), 2), lambda: layers.interpolate(ONES(1, 1, 0), 2),
        lambda: layers.interpolate(ONES(1, 1, 4)), lambda: layers.interpolate(ONES(1, 1, 4), 2, 2.0), lambda: layers.interpolate(ONES(1, 1, 4), 2, mode="bilinear"),
    ]),
    "attention": ("scaled_dot_product_attention", [
        lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 4), ONES(2, 3)), lambda: layers.scaled_dot_product_attention(ONES(3), ONES(2, 3), ONES(2, 3)),
        lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 3), ONES(4, 3)),
        lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 3), ONES(2, 3), ONES(2, 2).long()), lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 3), ONES(2, 3), ONES(1, 2, 2).bool()),
        lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 3), ONES(2, 3), ONES(3, 2).bool()), lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 3), ONES(2, 3), enable_gqa=True),
    ]),
    "fused attention": ("fused", [
        lambda: layers.scaled_dot_product_attention(ONES(2, 3), ONES(2, 3), ONES(2, 3), dropout_p=0.5, fused=True, key=KEY),
        lambda: layers.multi_head_attention(4, 2, fused=True).apply(PARAMS, ONES(1, 3, 4), need_weights=True),
    ]),
    "multi_head_attention, shapes": ("multi_head_attention expects", [
        lambda: ATTENTION.apply(PARAMS, ONES(4)), lambda: ATTENTION.apply(PARAMS, ONES(1, 3, 5)), lambda: ATTENTION.apply(PARAMS, ONES(1, 3, 4), ONES(2, 3, 4)),
        lambda: ATTENTION.apply(PARAMS, ONES(1, 3, 4), ONES(1, 3, 4), ONES(1, 2, 4)), lambda: ATTENTION.apply(PARAMS, ONES(2, 3, 4), attn_mask=ONES(3, 3, 3).bool()),
        lambda: ATTENTION.apply(PARAMS, ONES(2, 3, 4), key_padding_mask=ONES(3, 2).bool()), lambda: ATTENTION.apply(PARAMS, ONES(2, 3, 4), key_padding_mask=ONES(2, 3).long()),
    ]),
    "multi_head_attention, cache": ("cache", [
        lambda: ATTENTION.apply(PARAMS, ONES(1, 1, 4), cache=CACHE), lambda: CAUSAL.apply(PARAMS, ONES(1, 1, 4), ONES(1, 1, 4), cache=CACHE),
        lambda: CAUSAL.apply(PARAMS, ONES(1, 1, 4), cache=(1, 2)), lambda: CAUSAL.apply(PARAMS, ONES(1, 1, 4), cache={"key": ONES(1)}),
        lambda: CAUSAL.apply(PARAMS, ONES(2, 1, 4), cache=CACHE), lambda: CAUSAL.apply(PARAMS, ONES(1, 1, 4), cache=layers.attention_cache(1, 3, 4, 2, torch.float64)),
    ]),
    "multi_head_attention, made": ("multi_head_attention", [lambda: layers.multi_head_attention(6, 2, rotary_base=10.0), lambda: layers.multi_head_attention(4, 2, True), lambda: layers.multi_head_attention(4, 3)]),
    "transformer_encoder, cache": ("cache", [lambda: apply(ENCODER, ONES(1, 1, 4), cache=[CACHE]), lambda: apply(ENCODER, ONES(1, 1, 4), cache={"0": CACHE})]),
    "positions": ("positions", [
        lambda: layers.rotary_positions(ONES(3, 2), [0, 1, 2]), lambda: layers.rotary_positions(ONES(3, 2), ONES(3)), lambda: layers.rotary_positions(ONES(3, 2), torch.tensor(1)),
        lambda: layers.rotary_positions(ONES(3, 2), INTEGERS),
    ]),
    "lstm": ("lstm", [
        lambda: apply(LSTM, ONES(2)), lambda: apply(LSTM, ONES(1, 3, 4)), lambda: apply(LSTM, ONES(2, 3, 2), lengths=[1, 2]), lambda: apply(LSTM, ONES(2, 3, 2), lengths=ONES(2)),
        lambda: apply(LSTM, ONES(2, 3, 2), lengths=torch.tensor([1])), lambda: apply(LSTM, ONES(2, 3, 2), (ONES(1, 2, 3),)), lambda: apply(LSTM, ONES(2, 3, 2), ONES(1, 2, 3)),
        lambda: apply(LSTM, ONES(2, 3, 2), (ONES(1, 2, 4), ONES(1, 2, 3))),
    ]),
    "lstm_cell": ("lstm_cell", [lambda: apply(layers.lstm_cell(2, 3), ONES(1, 2), (ONES(1, 3),)), lambda: apply(layers.lstm_cell(2, 3), ONES(1, 2), ONES(1, 3))]),
    "mixed_precision": ("mixed_precision", [lambda: layers.mixed_precision(layers.linear(2, 2), compute="bfloat16"), lambda: layers.mixed_precision(layers.linear(2, 2), compute=torch.int64)]),
    "repeat": ("repeat expects|repeat of 2|linear expects a weight", [
        lambda: layers.repeat(layers.linear(2, 2), 2).apply(layers.linear(2, 2).init(KEY), ONES(1, 2)), lambda: layers.repeat(layers.linear(2, 2), 2).apply({"weight": ONES(()), "bias": ONES(2, 2)}, ONES(1, 2)),
        lambda: apply(layers.repeat(layers.linear(2, 3), 2), ONES(1, 2)),
    ]),
    "weight_norm": ("weight_norm", [
        lambda: layers.weight_norm(layers.linear(2, 2), name="w").init(KEY), lambda: layers.weight_norm(layers.linear(2, 2)).apply(ONES(2), ONES(2)),
        lambda: layers.weight_norm(layers.linear(2, 2)).apply({"bias": ONES(2)}, ONES(2)),
    ]),
    "networks": ("expects (images|inputs)", [
        *[lambda shape=shape: apply(fnn.models.lenet(), ONES(shape)) for shape in ((1, 32, 32), (2, 3, 32, 32), (2, 1, 28, 28))],
        *[lambda shape=shape: apply(fnn.models.vit(8, 4, 1, 2, 4, 8, num_classes=3), ONES(shape)) for shape in ((3, 8, 8), (2, 1, 8, 8), (2, 3, 8, 4))],
    ]),
    # random numbers
    "key": ("key expects", [lambda: random.key(True), lambda: random.key(torch.tensor(1)), lambda: random.key(1.0), lambda: random.key("1")]),
    "fold_in": ("fold_in expects", [lambda data=data: random.fold_in(KEY, data) for data in (INTEGERS, torch.tensor(1.0), torch.tensor(1j), torch.tensor(True), 1.0)]),
    "randint": ("randint expects an integer dtype", [lambda dtype=dtype: random.randint(KEY, (2,), 0, 3, dtype) for dtype in (torch.float32, torch.complex64, torch.bool)]),
    "randint, bounds": ("randint|bound", [lambda: random.randint(KEY, (2,), 0, torch.tensor(1.5)), lambda: random.randint(KEY, (2,), 0, torch.tensor(True)), lambda: random.randint(KEY, (2,), 0, 2.5)]),
    "categorical": ("categorical", [lambda: random.categorical(KEY, INTEGERS), lambda: random.categorical(KEY, numpy.ones(3)), lambda: random.categorical(KEY, ONES(()))]),
    "permutation": ("permutation", [lambda: random.permutation(KEY, ONES(())), lambda: random.permutation(KEY, 2.0)]),
    # gradients
    "per-sample arguments": ("chunk_size", [lambda: fnn.per_sample_grad(square, chunk_size=2.0), lambda: gradients.per_sample_moments(square, chunk_size=0)]),
    "weights of clipped_grad": ("weights has shape", [lambda w=w: fnn.clipped_grad(square, 1.0)(ONES(2), ONES(3, 2), weights=w) for w in (ONES(2), ONES(3, 1), ONES(()))]),
    "argnums": ("a position is an integer", [lambda: fnn.grad(square, 0.0)(ONES(2), ONES(2)), lambda: fnn.grad(square, True)(ONES(2), ONES(2)), lambda: fnn.grad(square, "0")(ONES(2), ONES(2))]),
    "aux": ("aux", [lambda: fnn.grad(lambda x: x.sum(), has_aux=True)(ONES(2)), lambda: fnn.grad(lambda x: (x.sum(), 1, 2), has_aux=True)(ONES(2)), lambda: fnn.grad(lambda x: [x.sum(), 1], has_aux=True)(ONES(2))]),
    "the value": ("scalar", [lambda: fnn.grad(lambda x: x)(ONES(2)), lambda: fnn.grad(lambda x: 1.0)(ONES(2)), lambda: fnn.grad(lambda x: x[:1])(ONES(2))]),
    # jacobian, curvature, linear algebra
    "primals": ("takes its primals", [lambda p=p: curvature.hvp(square, p, (ONES(2),)) for p in (ONES(2), (), {"x": ONES(2)})]),
    "tangents": ("one tangent for each primal", [lambda t=t: curvature.hvp(lambda x: x.sum(), (ONES(2),), t) for t in (ONES(2), (), (ONES(2), ONES(2)))]),
    "check_grads": ("check_grads needs", [lambda modes=modes: jacobian.check_grads(torch.sin, (ONES(2),), 1, modes) for modes in ((), ("forward",))]),
    "ntk": ("ntk needs", [lambda out=out: jacobian.ntk(lambda p, x: out, ONES(2), ONES(3, 2)) for out in (1.0, ONES(3), ONES(2, 2), ONES(3, 1, 1))]),
    "a pattern": ("pattern", [lambda p=p: jacobian.sparse_jacobian(torch.sin, p)(ONES(2)) for p in ([[1, 0], [0, 1]], ONES(2), ONES(0, 2))]),
    "matrix_operator": ("matrix", [lambda m=m: linalg.matrix_operator(m) for m in ([[1.0]], ONES(2), ONES(0, 0))]),
    "a product": (r"of shape \(2, 3\) multiplies", [lambda x=x: linalg.matrix_operator(ONES(2, 3)) @ x for x in (ONES(2), ONES(3, 1, 1), ONES(()))]),
    "likelihood": ("likelihood", [lambda: curvature.fisher_product(lambda p: p, (ONES(2, 3),), (ONES(2, 3),), "gaussian"), lambda: curvature.fisher_product(lambda p: p, (ONES(2),), (ONES(2),))]),
    "outputs of a model": ("Fisher|output is 1.0, not a tensor", [lambda out=out: curvature.fisher_product(lambda p: out, (ONES(2),), (ONES(2),), "normal") for out in (ONES(()), 1.0)]),
    "kfac": ("Kronecker factors are means|empirical Fisher takes", [lambda: curvature.kfac(lambda p, x: x, {"w": ONES(2)}), lambda: curvature.kfac(lambda p, x: x, {"w": ONES(2)}, ONES(2, 3), likelihood="empirical", key=KEY)]),
    # optimizers
    "nesterov": ("nesterov", [lambda: optim.sgd(nesterov=True), lambda: optim.sgd(momentum=0.9, dampening=0.1, nesterov=True)]),
    "line search": ("line_search_fn", [lambda: optim.lbfgs(line_search_fn="wolfe"), lambda: optim.lbfgs(line_search_fn=True)]),
    "plateau": ("mode", [lambda: schedules.reduce_on_plateau(1.0, mode="least"), lambda: schedules.reduce_on_plateau(1.0, threshold_mode="relative")]),
    "join": ("milestones", [lambda m=m: schedules.join([schedules.constant(1.0)] * 3, m) for m in ([1], [2, 1], [1, 1], [1, 2, 3])]),
    "a predicate": ("must be a tree of True and False", [lambda: optim.freeze(optim.sgd(), {"w": 1}).init({"w": ONES(2)}), lambda: optim.freeze(optim.sgd(), {"w": ONES(2) > 0}).init({"w": ONES(2)})]),
    "states": ("state", [
        lambda: optim.sgd().update({"w": ONES(2)}, {"w": ONES(2)}, {"w": ONES(2)}), lambda: optim.chain(optim.sgd(), optim.sgd()).update({"w": ONES(2)}, optim.sgd().init({"w": ONES(2)}), {"w": ONES(2)}),
        lambda: optim.sgd(momentum=0.9).update({"w": ONES(2)}, optim.sgd(momentum=0.9).init({"w": ONES(3)}), {"w": ONES(2)}),
    ]),
    # trees, data, training, interop
    "cast": ("cast expects", [lambda: tree.cast({}, "float32"), lambda: tree.cast({}, torch.int64)]),
    "state dicts": ("'b'|'c'", [lambda: tree.from_state_dict({"a": ONES(1)}, {"a": ONES(1), "b": ONES(1)}), lambda: tree.from_state_dict({"a": ONES(1), "c": ONES(1)}, {"a": ONES(1)})]),
    "one length": ("one common length", [lambda a=a: list(fnn.data.batches(a, 2)) for a in ({}, ONES(()), (ONES(2), ONES(())), (ONES(2), ONES(3)))]),
    "one_hot": ("one_hot expects", [lambda: transforms.one_hot(3)(ONES(2)), lambda: transforms.one_hot(3)(COMPLEX)]),
    "mixup": ("mixup expects targets", [lambda: transforms.mixup()(ONES(2, 1, 4, 4), ONES(2, 3).long()), lambda: transforms.mixup()(ONES(2, 1, 4, 4), ONES(2))]),
    "logits of predict": ("predict expects logits", [lambda y=y: training.predict(lambda p, x: y, {}, ONES(2, 3)) for y in (1.0, ONES(2), INTEGERS[:, None])]),
    "a folder": ("need a folder", [lambda o=o: training.fit(square, ({},), lambda epoch: [], 1, **o) for o in ({"resume": True}, {"save_every": 1}, {"tensorboard": True})]),
    "a state": ("state is a tuple", [lambda s=s: training.fit(square, s, lambda epoch: [], 1) for s in ((), [{}], {})]),
    "results of a step": ("step must return", [lambda r=r: list(training.fit(lambda p, b: r, ({},), lambda epoch: [ONES(2)], 1)) for r in ([{}, 1.0], ({},), ({}, {}, ONES(())))]),
    # functions of torch that are handed on
    "vmap of nothing": ("no positional arguments", [lambda: fnn.vmap(lambda: 1)(), lambda: fnn.vmap(lambda key: key)(key=ONES(2))]),
    "in_dims": ("in_dims is an integer or a tuple", [lambda d=d: fnn.vmap(torch.sin, d)(ONES(2)) for d in ([0], "0", None)]),
    "entries of in_dims": ("entries for", [lambda: fnn.vmap(torch.sin, (0, 0))(ONES(2)), lambda: fnn.vmap(lambda x, key: x, (0, 0))(ONES(2), key=ONES(2))]),
    "a structure of in_dims": ("whose structure is", [lambda: fnn.vmap(lambda t: t["a"], ({"b": 0},))({"a": ONES(2)})]),
    "what is mapped": ("maps no argument", [lambda: fnn.vmap(torch.sin, (None,))(ONES(2)), lambda: fnn.vmap(lambda t: t["a"], ({"a": None},))({"a": ONES(2)})]),
    "lengths of vmap": ("have different lengths", [lambda: fnn.vmap(torch.add)(ONES(2), ONES(3))]),
    "leaves of vmap": ("vmap maps tensors", [lambda v=v: fnn.vmap(lambda x: x)(v) for v in (1.0, None, {"a": None}, {"a": 2}, "text")]),
    "randomness": ("randomness is", [lambda: fnn.vmap(torch.sin, randomness="some")(ONES(2))]),
    "no arguments": ("got 0 positional arguments", [lambda: fnn.grad(lambda: ONES(()))()]),
    "cotangents of vjp": ("cotangent", [lambda c=c: fnn.vjp(lambda x: {"y": x.sin()}, ONES(2))[1](c) for c in (ONES(2), {"z": ONES(2)}, {"y": ONES(3)})]),
    "tangents of linearize": ("tangent", [lambda t=t: fnn.linearize(torch.sin, ONES(2))[1](*t) for t in ((ONES(3),), (), (ONES(2), ONES(2)))]),
    # compiled functions
    "fnn.trace": ("fnn.trace takes trees of tensors", [lambda v=v: fnn.trace(lambda x: x)(v) for v in (1.0, None, [ONES(2), "text"])]),
    "static arguments": ("is static", [
        lambda: fnn.jit(lambda x, n: x * n, static_argnums=1)(ONES(2), n=2), lambda: fnn.jit(lambda x, n: x * n, static_argnums=1)(ONES(2), ONES(())),
        lambda: fnn.jit(lambda x, n: x * n, static_argnums=1)(ONES(2), [2]),
    ]),
    "cpu_matmul": ("cpu_matmul", [lambda: fnn.jit(lambda x: x @ x, options={"cpu_matmul": "eigen"}, backend="inductor")(ONES(2, 2))]),
    "None in a carry": ("is None", [
        lambda: fnn.scan(lambda c, x: ((c[0], None), x), (ONES(2), ONES(2)), ONES(3)), lambda: fnn.scan(lambda c, x: ((c[0], ONES(2)), x), (ONES(2), None), ONES(3)),
    ]),
    # more of the gradients
    "reduction of clipped_grad": ("reduction is", [lambda: fnn.clipped_grad(square, 1.0, reduction="none")]),
    "max_norm": ("max_norm is", [lambda: fnn.clipped_grad(square, lambda norm: norm), lambda: fnn.clipped_grad(lambda p, b: square(p["w"], b), {"w": 1.0})({"w": ONES(2)}, ONES(3, 2))]),
    "complex moments": ("moments of complex", [lambda: gradients.per_sample_moments(lambda p, b: (p * b).abs().sum())(COMPLEX, ONES(3, 2))]),
    "keywords of per-sample functions": ("cannot be mapped", [lambda: fnn.per_sample_grad(lambda p, b, scale: square(p, b))(ONES(2), ONES(3, 2), scale=ONES(3))]),
    "an unused product": ("at least one product", [lambda: jacobian.jmp(torch.sin, (ONES(2),), (ONES(0, 2),)), lambda: jacobian.mjp(torch.sin, (ONES(2),), ONES(0, 2))]),
    "complex check_grads": ("real numbers", [lambda: jacobian.check_grads(lambda x: x * 1j, (ONES(2).double(),), 1), lambda: jacobian.check_grads(lambda x: x.abs(), (COMPLEX,), 1)]),
    "autograd.Functions": ("autograd.Function", [lambda: curvature.hvp(lambda x: WithoutContext.apply(x).sum(), (ONES(2),), (ONES(2),))]),
    "schedule_free": ("beta1 > 0", [lambda: optim.schedule_free(optim.sgd(), beta1=0.0), lambda: optim.schedule_free(optim.sgd(), beta1=0)]),
    "bounds of randint": ("64 bits|torch.int64", [lambda: random.randint(KEY, (2,), 0, 1 << 64), lambda: random.randint(KEY, (2,), -(1 << 63) - 1, 0), lambda: random.randint(KEY, (2,), 0, 1 << 65)]),
    "params of an optimizer": ("not a tensor", [lambda v=v: optim.sgd().init({"w": ONES(2), "name": v}) for v in ("text", 1.0, None)]),
    # more of layers, trees, data, training
    "no input": ("got no input", [lambda: apply(layers.linear(2, 2), None)]),
    "a class among the parts": ("is the class", [lambda: layers.sequential(layers.linear(2, 2), WithoutContext)]),
    "config": ("config", [lambda: fnn.layers.config(torch.nn.Linear(2, 2)), lambda: fnn.layers.config(3)]),
    "params of repeat": ("repeat expects tensors", [lambda: layers.repeat(layers.linear(2, 2), 2).apply({"weight": "text", "bias": ONES(2, 2)}, ONES(1, 2))]),
    "evaluate": ("got a layer", [lambda: training.evaluate(layers.linear(2, 2), {}, (ONES(2, 2), INTEGERS), 2)]),
    "an empty data set": ("no rows", [lambda: fnn.data.batches((ONES(0, 2), ONES(0)), 2)]),
    "nested state dicts": ("lies below", [lambda: tree.from_state_dict({"a": ONES(1), "a.b": ONES(1)})]),
    "load": ("not a tensor", [lambda: fnn.checkpoint.load(saved(), {"w": 1.0}), lambda: fnn.checkpoint.load(saved(), {"w": "text"})]),
    "to_module": ("to_module", [lambda: interop.to_module(layers.batch_norm(2), {}), lambda: interop.to_module(layers.linear(2, 2), ONES(2))]),
    "from_module": ("from_module expects", [lambda: interop.from_module(torch.nn.Linear), lambda: interop.from_module(3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_each_part_of_a_condition_refuses(name: str) -> None:
    sentence, calls = REFUSED[name]
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=sentence) as found:
            call()
        assert is_sentence(found.value), repr(found.value)


def loss_of(output: Tensor, *rest: Any) -> Tensor:
    return (output**2).mean()


VECTOR, MATRIX, BATCH = ONES(3), torch.eye(3), ONES(3, 2)
# every public function that has one of these arguments, called with a wrong one and otherwise right
CHOICES = ("chunk_size", "method", "mode", "draws", "probes")
CHOSEN: dict[str, Callable[..., Any]] = {
    "clipped_grad": lambda **o: fnn.clipped_grad(square, 1.0, **o),
    "per_sample_grad": lambda **o: fnn.per_sample_grad(square, **o),
    "gradient_noise_scale": lambda **o: gradients.gradient_noise_scale(square, **o),
    "per_sample_moments": lambda **o: gradients.per_sample_moments(square, **o),
    "per_sample_norms": lambda **o: gradients.per_sample_norms(square, **o),
    "per_sample_value_and_grad": lambda **o: gradients.per_sample_value_and_grad(square, **o),
    "dense_jacobian": lambda **o: jacobian.dense_jacobian(torch.sin, **o)(VECTOR),
    "detect_pattern": lambda **o: jacobian.detect_pattern(torch.sin, VECTOR, **o),
    "jmp": lambda **o: jacobian.jmp(torch.sin, (VECTOR,), (MATRIX,), **o),
    "laplacian": lambda **o: jacobian.laplacian(lambda x: x.sin().sum(), **o)(VECTOR),
    "mjp": lambda **o: jacobian.mjp(torch.sin, (VECTOR,), MATRIX, **o),
    "ntk": lambda **o: jacobian.ntk(lambda p, x: x @ p[:, None], ONES(2), BATCH, **o),
    "sparse_jacobian": lambda **o: jacobian.sparse_jacobian(torch.sin, MATRIX.bool(), **o)(VECTOR),
    "dense_hessian": lambda **o: curvature.dense_hessian(lambda x: x.sin().sum(), **o)(VECTOR),
    "ekfac": lambda **o: curvature.ekfac(LINEAR.apply, LINEAR.init(KEY), BATCH, key=KEY, **o),
    "kfac": lambda **o: curvature.kfac(LINEAR.apply, LINEAR.init(KEY), BATCH, key=KEY, **o),
    "fisher_operator": lambda **o: curvature.fisher_operator(LINEAR.apply, LINEAR.init(KEY), BATCH, key=KEY, **o),
    "fisher_product": lambda **o: curvature.fisher_product(lambda p: p, (BATCH,), (BATCH,), key=KEY, **o),
    "ggn_diagonal": lambda **o: curvature.ggn_diagonal(LINEAR.apply, loss_of, **o)(LINEAR.init(KEY), BATCH),
    "hessian_diagonal": lambda **o: curvature.hessian_diagonal(lambda x: x.sin().sum(), **o)(VECTOR),
    "hvp": lambda **o: curvature.hvp(lambda x: x.sin().sum(), (VECTOR,), (VECTOR,), **o),
    "sparse_hessian": lambda **o: curvature.sparse_hessian(lambda x: x.sin().sum(), MATRIX.bool(), **o)(VECTOR),
    "estimate_diagonal": lambda **o: linalg.estimate_diagonal(MATRIX, KEY, **o),
    "estimate_frobenius_norm": lambda **o: linalg.estimate_frobenius_norm(MATRIX, KEY, **o),
    "estimate_trace": lambda **o: linalg.estimate_trace(torch.eye(40), KEY, **o),
    "log_determinant": lambda **o: linalg.log_determinant(MATRIX, KEY, **o),
    "spectral_density": lambda **o: linalg.spectral_density(MATRIX, KEY, **o),
}
LINEAR = layers.linear(2, 2)


def choices_of(function: Callable) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name in CHOICES]


PUBLIC = {
    name: function
    for room in (fnn, gradients, jacobian, curvature, linalg)
    for name in room.__all__
    if inspect.isfunction(function := getattr(room, name)) and choices_of(function)
}


@pytest.mark.parametrize("name", CHOSEN)
def test_wrong_choices_are_refused(name: str) -> None:
    for choice in choices_of(PUBLIC[name]):
        wrong = ["other", None] if choice in ("method", "mode") else [0, -1]
        for value in wrong:
            with pytest.raises((ValueError, TypeError)) as found:
                CHOSEN[name](**{choice: value})
            assert is_sentence(found.value), (choice, value, repr(found.value))
            assert re.search(rf"{choice}|{value!r}", str(found.value)), found.value
