"""The choice of a device."""

import torch


def device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" is the accelerator if torch finds one, else the CPU.

    name: "auto", "cpu", or an accelerator such as "cuda", "cuda:1", "mps" or "xpu". Move a tree there with
    ``fnn.tree.to(params, device)``. Raises ``ValueError`` for a device that torch does not find here.

    >>> device("cpu")
    device(type='cpu')
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return torch.device(found.type if found else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ValueError(f"torch has no device {name!r}; write 'auto', 'cpu', 'cuda' or 'mps'") from None
    if chosen.type in ("cpu", "meta"):
        return chosen
    if found is None or found.type != chosen.type:
        raise ValueError(f"torch finds {found.type if found else 'no accelerator'} here, and no device {name!r}")
    count = torch.accelerator.device_count()
    if chosen.index is not None and chosen.index >= count:
        raise ValueError(f"torch finds {count} of {chosen.type} here, and no device {name!r}")
    return chosen
