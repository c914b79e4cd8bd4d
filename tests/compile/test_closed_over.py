"""Tensors that a jitted function closes over."""

import torch

import fnn


def test_tensors_that_come_before_all_arguments_are_inputs_of_the_graph() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    f = fnn.jit(lambda x: torch.cat([first, second, first]) * x)
    assert torch.equal(f(torch.tensor(2.0)), torch.tensor([2.0, 4.0, 6.0, 2.0, 4.0]))
    first.fill_(5.0)
    assert torch.equal(f(torch.tensor(1.0)), torch.tensor([5.0, 5.0, 3.0, 5.0, 5.0]))
