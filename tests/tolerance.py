"""How far two computations of the same may lie apart: as far as rounding can bring them, on any machine."""

import math
from typing import Any

import torch


# Additions along the longest path through the tiny model of tests/conftest.py: three layers of the tower (2 x 32 for
# attention and its output, 17 patches, 32 + 64 for the MLP), the projector (2 x 32), two layers of the LLaMA (2 x 32,
# some 50 tokens, 32 + 64), the head (32); and as much again for norms and softmaxes
TINY_MODEL = 2 * (3 * (64 + 17 + 96) + 64 + 2 * (64 + 50 + 96) + 32)


def rounding(largest: float, additions: int = TINY_MODEL, dtype: torch.dtype = torch.float32) -> float:
    """
    By how much sums may differ that other processors, threads or kernels add up in another order. Each addition rounds
    by up to the type's epsilon times the largest number that is added; the errors of many walk at random, and eight
    standard deviations of such a walk are not met by chance.
    """
    return 8 * math.sqrt(additions) * torch.finfo(dtype).eps * largest


def assert_close(
    actual: Any, expected: Any, additions: int = TINY_MODEL, largest: float = 0.0, msg: str | None = None
) -> None:
    """
    Whether values of a network agree but for rounding.

    Args:
        actual, expected: tensors, or lists of numbers.
        additions (`int`): see [`rounding`].
        largest (`float`): the largest number that is added up on the way, if it is larger than what is expected.
    """
    actual, expected = (torch.as_tensor(value).detach().float() for value in (actual, expected))
    largest = max(largest, float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(actual, expected, atol=rounding(largest, additions), rtol=0.0, msg=msg)
