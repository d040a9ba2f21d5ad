"""The order of stage 2: groups of rows of about one length, all with images or all without."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


class ModalityLengthSampler(Sampler[int]):
    """
    Row numbers, of which every `group_size` (all processes' batches of one step) are of one modality and of about one
    length: less padding, and no step in which one process waits for another's images. What is left over of both
    modalities makes up the last group. The order is drawn anew in every epoch, from the seed; the group with the
    longest row comes first, so that a run that needs more memory than there is fails at once.

    Args:
        lengths (`list[int]`): of the rows, in any unit.
        has_images (`list[bool]`): of the rows.
        group_size (`int`): rows per device times processes.
        seed (`int`): the same on all processes.
        groups_per_block (`int`): rows are sorted by length within blocks of so many groups, and random otherwise.
    """

    def __init__(
        self, lengths: list[int], has_images: list[bool], group_size: int, seed: int = 0, groups_per_block: int = 50
    ):
        self.lengths, self.has_images = torch.tensor(lengths), torch.tensor(has_images, dtype=torch.bool)
        self.group_size, self.seed, self.groups_per_block = group_size, seed, groups_per_block
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Which order to draw."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        groups, rest = [], []
        for modality in (True, False):
            rows = (self.has_images == modality).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=generator)]
            num_whole = len(rows) - len(rows) % self.group_size
            rest += rows[num_whole:].tolist()
            for start in range(0, num_whole, self.group_size * self.groups_per_block):
                block = rows[start : min(start + self.group_size * self.groups_per_block, num_whole)]
                by_length = block[self.lengths[block].argsort(descending=True, stable=True)]
                groups += by_length.split(self.group_size)
        groups = [groups[index] for index in torch.randperm(len(groups), generator=generator).tolist()]
        longest = max(range(len(groups)), key=lambda index: self.lengths[groups[index]].max(), default=None)
        if longest is not None:
            groups.insert(0, groups.pop(longest))
        yield from (row for group in groups for row in group.tolist())
        yield from rest


class TellEpoch(TrainerCallback):
    """Tells a sampler the epoch: on several processes, after a resumption, accelerate's data loader does not."""

    def __init__(self, sampler: ModalityLengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))
