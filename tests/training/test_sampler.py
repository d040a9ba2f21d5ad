"""The order of rows by modality and length."""

import pytest
import torch

from aligngpt.training.sampler import ModalityLengthSampler


@pytest.fixture
def rows():
    """Lengths and modalities of 1003 rows, a third of them without an image."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 2000, (1003,), generator=generator).tolist()
    return lengths, (torch.rand(1003, generator=generator) > 0.3).tolist()


def groups(sampler, size=16):
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_every_row_comes_once(rows):
    sampler = ModalityLengthSampler(*rows, group_size=16)
    assert sorted(sampler) == list(range(1003)) and len(sampler) == 1003


def test_a_group_is_of_one_modality_and_the_rest_comes_last(rows):
    *whole, second_last, last = groups(ModalityLengthSampler(*rows, group_size=16))
    assert {len({rows[1][row] for row in group}) for group in whole} == {1}
    assert len({rows[1][row] for row in second_last + last}) == 2


def test_a_group_has_rows_of_about_one_length(rows):
    sampler = ModalityLengthSampler(*rows, group_size=16, groups_per_block=10)
    padded = sum(max(rows[0][row] for row in group) * len(group) for group in groups(sampler))
    shuffled = torch.randperm(1003).tolist()
    random_groups = [shuffled[start : start + 16] for start in range(0, 1003, 16)]
    padded_at_random = sum(max(rows[0][row] for row in group) * len(group) for group in random_groups)
    assert padded < 1.15 * sum(rows[0]) < padded_at_random / 1.5


def test_the_longest_group_comes_first(rows):
    assert max(rows[0]) in [rows[0][row] for row in groups(ModalityLengthSampler(*rows, group_size=16))[0]]


def test_the_order_depends_on_seed_and_epoch_alone(rows):
    def order(seed, epoch):
        sampler = ModalityLengthSampler(*rows, group_size=16, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(*key)) for key in ((1, 0), (1, 1), (2, 0))}) == 3


@pytest.mark.parametrize("number", [0, 1, 5])
def test_fewer_rows_than_a_group_come_all_the_same(number):
    assert sorted(ModalityLengthSampler([3] * number, [True] * number, group_size=16)) == list(range(number))
