"""Write torch_nn.md, the table of every class of torch.nn and its counterpart: ``python docs/make_torch_nn.py``.

A counterpart is found by its name, so that a layer that is added to fnn appears without a line here. What has another
name or none is in ``OTHER_NAMES`` and ``WITHOUT``; a class that is in neither shows as missing, and a test fails.
"""

import inspect
import re
from pathlib import Path

import torch

import fnn

PAGE = Path(__file__).resolve().parent / "torch_nn.md"
MISSING = "missing"

OTHER_NAMES = {
    "AdaptiveLogSoftmaxWithLoss": "layers.adaptive_log_softmax",
    "CrossMapLRN2d": "layers.local_response_norm",
    "LinearCrossEntropyLoss": "losses.cross_entropy",
    "MultiLabelMarginLoss": "losses.multilabel_margin",
    "MultiLabelSoftMarginLoss": "losses.multilabel_soft_margin",
    "MultiheadAttention": "layers.multi_head_attention",
    "NLLLoss2d": "losses.nll",
}
REMARKS = {
    "AdaptiveLogSoftmaxWithLoss": "gives the logarithms of all probabilities; the loss is `losses.nll` of them",
    "CrossMapLRN2d": "for an odd `size`; torch's class by mistake keeps the first channel in every sum",
    "LinearCrossEntropyLoss": "of the output of `layers.linear`, or of `x @ weight.T`",
    "NLLLoss2d": "an older name of `NLLLoss`",
    "Dropout2d": "three axes are (channels, height, width), as in other layers of images",
    "LogSigmoid": "JAX's spelling",
    "CTCLoss": "its derivative with respect to `log_probs` is that of the formula",
}
WITHOUT = {
    "Buffer": "state is a tree of tensors",
    "Container": "an older name of `Module`",
    "DataParallel": "a function is run on several devices by `torch.distributed`, outside the differentiated function",
    "LinearCrossEntropyOptions": "options of one kernel",
    "Module": "a layer is a pair of functions, `fnn.Layer` or `fnn.StatefulLayer`",
    "ModuleDict": "a dict of layers is a dict; `layers.sequential` takes named parts",
    "ModuleList": "a list of layers is a list",
    "Parameter": "params are plain tensors",
    "ParameterDict": "params are a dict",
    "ParameterList": "params may be a list",
    "RNNBase": "the base class of recurrent modules",
    "RNNCellBase": "the base class of recurrent cells",
    "SyncBatchNorm": "communicates inside the differentiated function, which torch.func refuses",
    "UninitializedBuffer": "sizes are arguments",
    "UninitializedParameter": "sizes are arguments",
}


def classes() -> list[str]:
    """Every public class of torch.nn."""
    return sorted(name for name, value in vars(torch.nn).items() if inspect.isclass(value) and name[0] != "_")


def snake_case(name: str) -> str:
    """``AdaptiveAvgPool1d`` -> ``adaptive_avg_pool1d``."""
    for unit in ("ReLU", "SiLU"):
        name = re.sub(rf"[A-Z]?{unit}", lambda found: found[0].capitalize(), name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def counterpart(name: str) -> str | None:
    """The public name in fnn, such as ``layers.linear``, of a class of torch.nn."""
    if name in OTHER_NAMES:
        room, _, found = OTHER_NAMES[name].partition(".")
        return OTHER_NAMES[name] if hasattr(getattr(fnn, room), found) else None
    plain = snake_case(name)
    if plain.endswith("_loss"):
        plain = plain.removesuffix("_loss")
        return f"losses.{plain}" if plain in fnn.losses.__all__ else None
    for candidate in (plain, re.sub(r"[123]d$", "", plain)):  # such as batch_norm, for any number of axes
        if candidate in fnn.layers.__all__:
            return f"layers.{candidate}"
    return None


def row(name: str) -> str:
    """The line of the table for one class."""
    found, remark = counterpart(name), REMARKS.get(name, "")
    if found is None and name.startswith("Lazy"):
        remark = f"sizes are arguments: see `{name.removeprefix('Lazy')}`"
    elif found is None:
        remark = WITHOUT.get(name, MISSING)
    return f"| `{name}` | {f'`{found}`' if found else 'none'} | {remark} |"


def page() -> str:
    """The text of the page."""
    introduction = """
# Every class of torch.nn

`python docs/make_torch_nn.py` writes this table from the public classes of `torch.nn` and the public names of fnn, and
a test compares it. Activations are functions of a tensor; the others are functions that make a layer. The page
{doc}`module_db` has what came out when they ran on torch's own inputs.

| `torch.nn` | fnn | remark |
|---|---|---|
"""
    return introduction.lstrip() + "\n".join(row(name) for name in classes()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
