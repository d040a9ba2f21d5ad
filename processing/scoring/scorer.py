"""Alignment scores: how well the text of each image-text pair describes the image, the s of equation 1."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils import cached_file, extract_commit_hash

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import Sample

from .preparation import PairPreparer, is_scored


class AlignmentScorer:
    """
    Scores pairs by the cosine similarity of a dual encoder's image and text embeddings.

    Args:
        model_name_or_path (`str`): Hub id or folder of a model with `get_image_features` and `get_text_features`
            (CLIP, SigLIP, SigLIP 2), its tokenizer and its image processor.
        revision (`str`, *optional*): of the Hub repository.
        device (`str` or `torch.device`, *optional*): where it runs; a GPU if there is one.
        dtype (`str` or `torch.dtype`, *optional*): float16 on a GPU (with 10 bits of mantissa closer to float32 than
            bfloat16), else float32.

    Raises:
        TypeError: if the model is no dual encoder, or its image processor is of another kind than CLIP's.
    """

    def __init__(
        self,
        model_name_or_path: str,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or ("float16" if self.device.type == "cuda" else "float32")
        self.model = AutoModel.from_pretrained(model_name_or_path, revision=revision, dtype=dtype)
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise TypeError(f"{model_name_or_path} is no dual encoder: it has no embeddings of both images and texts.")
        self.model = self.model.to(self.device).eval()
        self.revision = _find_revision(model_name_or_path, revision)
        self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, revision=revision)
        # Pillow's resizing: torchvision's differs in a pixel here and there, and scores are to be reproducible
        self.image_processor = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision, backend="pil")
        text_config = self.model.config.get_text_config()
        self.max_length = min(self.tokenizer.model_max_length, text_config.max_position_embeddings)
        # SigLIP was trained with full rows and pools at their last token
        self.padding = "max_length" if "siglip" in self.model.config.model_type else "longest"
        self._largest_batch: int | None = None
        self._check_preparation(model_name_or_path)

    def preparer(self, image_folder: str | None = None) -> PairPreparer:
        """What makes records ready for `score_batch`."""
        return PairPreparer(self.image_processor, self.tokenizer, self.max_length, self.padding, image_folder)

    @torch.inference_mode()
    def score_batch(self, batch: dict[str, Any]) -> torch.Tensor:
        """
        Cosine similarities, float32 of shape (scored pairs,) on the device, of what a `PairPreparer` returned. A batch
        that does not fit into the GPU's memory is halved until it does.
        """
        if not batch["image_inputs"]:
            return torch.empty(0, device=self.device)
        inputs = [
            {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch[part].items()}
            for part in ("image_inputs", "text_inputs")
        ]
        pairs = len(next(iter(inputs[1].values())))
        size, scores, start = min(self._largest_batch or pairs, pairs), [], 0
        while start < pairs:
            try:
                scores.append(self._embed(*({k: v[start : start + size] for k, v in part.items()} for part in inputs)))
                start += size
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = self._largest_batch = size // 2
        return torch.cat(scores)

    def _embed(self, image_inputs: dict[str, torch.Tensor], text_inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_values = self._normalize(image_inputs["pixel_values"])
        image_embeddings = self.model.get_image_features(**(image_inputs | {"pixel_values": pixel_values}))
        text_embeddings = self.model.get_text_features(**text_inputs)
        return torch.cosine_similarity(image_embeddings.pooler_output.float(), text_embeddings.pooler_output.float())

    def _normalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the image processor would have done after resizing: (batch, 3, height, width), or patches x colours."""
        processor = self.image_processor
        pixel_values = pixel_values.float()
        if processor.do_rescale:
            pixel_values *= processor.rescale_factor
        if processor.do_normalize:
            mean, std = torch.tensor([processor.image_mean, processor.image_std], device=self.device).unbind()
            if pixel_values.dim() == 4:
                pixel_values.sub_(mean[:, None, None]).div_(std[:, None, None])
            else:
                pixel_values.unflatten(-1, (-1, len(mean))).sub_(mean).div_(std)
        return pixel_values.to(self.model.dtype)

    def _check_preparation(self, name: str) -> None:
        """Whether resizing and normalising is all that the image processor does; ALIGN's does more."""
        noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        pair = read_record({"image": Image.fromarray(noise), "caption": "a"})
        prepared = self.preparer().__getitems__([pair])
        inputs = prepared["image_inputs"] | {"pixel_values": prepared["image_inputs"]["pixel_values"].to(self.device)}
        ours = self._normalize(inputs["pixel_values"]).float().cpu()
        theirs = self.image_processor(Image.fromarray(noise), return_tensors="pt")["pixel_values"]
        if not torch.allclose(ours, theirs, atol=1e-5 if self.model.dtype == torch.float32 else 0.05):
            raise TypeError(f"The image processor of {name} does more than to resize, rescale and normalise.")

    def prepare(
        self,
        batches: Iterable[tuple[Any, list[Sample | Fault]]],
        image_folder: str | None = None,
        num_workers: int = 0,
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        """
        Batches made ready for `score_batch`, in their order, ahead of their use by worker processes: of anything that
        stands for a batch and its samples, that thing and what a `PairPreparer` returns for these.
        """
        waiting: deque[Any] = deque()

        def read() -> Iterator[list[Sample | Fault]]:
            for batch, samples in batches:
                waiting.append(batch)
                yield samples

        loader = DataLoader(
            self.preparer(image_folder),
            batch_sampler=read(),  # a batch's "indices" are its samples: read once, here, for all workers
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=2 if num_workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_prepare_worker,
        )
        for prepared in loader:
            yield waiting.popleft(), prepared

    def score(
        self,
        images: Sequence[Image.Image | str],
        texts: Sequence[str],
        batch_size: int = 64,
        num_workers: int = 0,
        progress: bool = False,
    ) -> np.ndarray:
        """
        Cosine similarities, float32 of shape (pairs,), of images (pictures or paths) and texts in memory. Texts are
        cut at the model's length. For a corpus see `aligngpt.processing.scoring.run`.

        Raises:
            ValueError: if there are not as many texts as images, or one cannot be used; the message names it.
        """
        if len(images) != len(texts):
            raise ValueError(f"There are {len(images)} images and {len(texts)} texts; a pair is one of each.")
        samples = [
            read_record({"image": os.path.abspath(image) if isinstance(image, str) else image, "caption": text})
            for image, text in zip(images, texts, strict=True)
        ]
        starts = range(0, len(samples), batch_size)
        batches = self.prepare(((start, samples[start : start + batch_size]) for start in starts), os.sep, num_workers)
        scores = []
        for start, batch in tqdm(batches, desc="Scoring", disable=not progress, unit="batch", total=len(starts)):
            for index, pair in enumerate(batch["pairs"], start=start):
                if not is_scored(pair):
                    raise ValueError(f"Pair {index}: {pair.get('fault', 'there is no image')}")
            scores.append(self.score_batch(batch).cpu())
        return torch.cat(scores).numpy() if scores else np.empty(0, dtype=np.float32)


def _find_revision(model_name_or_path: str, revision: str | None) -> str | None:
    """The Hub's commit, or for a folder a hash of its weights: scores name the scorer that gave them."""
    if not os.path.isdir(model_name_or_path):
        return extract_commit_hash(cached_file(model_name_or_path, "config.json", revision=revision), None)
    digest = hashlib.sha256()
    for path in sorted(Path(model_name_or_path).glob("*.safetensors")) or sorted(
        Path(model_name_or_path).glob("*.bin")
    ):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _prepare_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one thread
