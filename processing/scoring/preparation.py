"""Samples made ready for a scorer, in worker processes: captions as token ids, images as uint8 pixels of its size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import ImageFolderNeededError, open_image
from aligngpt.processing.corpus.samples import Sample, check_single


class PairPreparer(Dataset):
    """
    Makes a batch of samples ready for a scorer, in the workers of a `DataLoader`: captions to token ids, images to
    uint8 pixels of the scorer's size, once each. Rescaling and normalising are left to the device.

    Args:
        image_processor, tokenizer: the scorer's.
        max_length (`int`): tokens of a caption.
        padding (`str`): `"longest"` or `"max_length"`.
        image_folder (`str`, *optional*): where paths in records start; needed if there are any.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, max_length: int, padding: str, image_folder: str | None = None
    ):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.max_length, self.padding, self.image_folder = max_length, padding, image_folder
        self.resize = plain_resize(image_processor)

    def __getitems__(self, samples: Sequence[Sample | Fault]) -> dict[str, Any]:
        """
        `pairs`: a dict for each sample, with `converted` (see `open_image`, and the sample's notes), `truncated`, and
        `fault` (a `Fault`) or `text_only` where there is nothing to score. `image_inputs` and `text_inputs`: tensors
        for the other samples, in their order.
        """
        pairs, images, captions = [], [], []
        for sample in samples:
            pair = {"converted": [], "truncated": False}
            pairs.append(pair)
            try:
                if isinstance(sample, Fault):
                    raise sample
                pair["text_only"] = not sample.images
                pair["converted"] += sample.notes
                caption = sample.caption
                if sample.images:
                    images.append(self._prepare_image(sample.images, pair["converted"]))
                    captions.append(caption)
            except Fault as fault:
                pair["fault"] = fault
            except ImageFolderNeededError:
                raise
            except Exception as error:  # one pair in a billion that nobody thought of does not end the run
                pair["fault"] = Fault("unexpected", f"{type(error).__name__}: {error}")
        batch = {"pairs": pairs, "image_inputs": {}, "text_inputs": {}}
        if images:
            # Straight into memory that the scorer's process shares
            batch["image_inputs"] = default_collate(images)
            batch["text_inputs"], truncated = self._tokenize(captions)
            scored = (pair for pair in pairs if is_scored(pair))
            for pair, is_truncated in zip(scored, truncated, strict=True):
                pair["truncated"] = is_truncated
        return batch

    def _prepare_image(self, sources: list[Any], converted: list[str]) -> dict[str, torch.Tensor]:
        check_single(sources)
        image, conversions = open_image(sources[0], self.image_folder)
        converted.extend(conversions)
        if self.resize is not None:
            return {"pixel_values": torch.from_numpy(np.array(self.resize(image))).permute(2, 0, 1)}
        return {name: tensor[0] for name, tensor in _process(self.image_processor, image).items()}

    def _tokenize(self, captions: list[str]) -> tuple[dict[str, torch.Tensor], list[bool]]:
        inputs = self.tokenizer(
            captions,
            padding=self.padding,
            # CLIP pools at the end token: left padding would move the similarities by up to 0.09
            padding_side="right",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        if self.tokenizer.is_fast:
            return dict(inputs), [bool(encoding.overflowing) for encoding in inputs.encodings]
        return dict(inputs), [len(self.tokenizer(caption).input_ids) > self.max_length for caption in captions]


def is_scored(pair: dict[str, Any]) -> bool:
    """Whether a pair of a prepared batch has a score."""
    return "fault" not in pair and not pair["text_only"]


@dataclass(frozen=True)
class PlainResize:
    """
    What an image processor does before it rescales, by Pillow alone, in three quarters of the time.

    Args:
        size (`dict`): `shortest_edge`, or `width` and `height`.
        crop (`dict`, *optional*): `width` and `height` of the middle that is cut out.
        resample (`int`): Pillow's filter.
    """

    size: dict[str, int]
    crop: dict[str, int] | None
    resample: int

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if "shortest_edge" in self.size:
            short = self.size["shortest_edge"]
            long = int(short * max(width, height) / min(width, height))
            width, height = (short, long) if width <= height else (long, short)
        else:
            width, height = self.size["width"], self.size["height"]
        image = image.resize((width, height), self.resample)
        if self.crop is not None:
            left, top = (width - self.crop["width"]) // 2, (height - self.crop["height"]) // 2
            image = image.crop((left, top, left + self.crop["width"], top + self.crop["height"]))
        return image


def plain_resize(image_processor: Any) -> PlainResize | None:
    """
    The resizing and cropping of an image processor by Pillow alone; None for one that does anything else. Whether the
    pixels are the same is not inferred but tried.
    """
    generator = np.random.default_rng(0)
    try:
        crop = image_processor.crop_size if getattr(image_processor, "do_center_crop", None) else None
        crop = None if crop is None else dict(crop)
        resize = PlainResize(dict(image_processor.size), crop, int(image_processor.resample))
        for shape in ((31, 47), (53, 29), (40, 40), (9, 100)):
            image = Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
            pixels = _process(image_processor, image)
            if pixels.keys() != {"pixel_values"}:
                return None
            if not np.array_equal(np.asarray(resize(image)).transpose(2, 0, 1), pixels["pixel_values"][0].numpy()):
                return None
    except (KeyError, TypeError, ValueError):
        return None
    return resize


def _process(image_processor: Any, image: Image.Image) -> dict[str, torch.Tensor]:
    return dict(
        image_processor(
            image,
            # of an array with 1 or 3 rows the processor cannot tell the channels
            input_data_format="channels_last",
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
    )
