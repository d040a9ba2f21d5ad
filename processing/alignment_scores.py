"""Alignment scores: how well the text of each image-text pair describes the image, the s of equation 1."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor


class AlignmentScorer:
    """
    Scores pairs by the cosine similarity of a dual encoder's image and text embeddings.

    Args:
        model_name_or_path (`str`): Hub id or folder of a model with `get_image_features` and `get_text_features`, such
            as CLIP or SigLIP, and its processor.
        revision (`str`, *optional*): of the Hub repository.
        device (`str` or `torch.device`, *optional*): where it runs; a GPU if there is one.
    """

    def __init__(self, model_name_or_path: str, revision: str | None = None, device: str | torch.device | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = AutoModel.from_pretrained(model_name_or_path, revision=revision).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(model_name_or_path, revision=revision)

    @torch.inference_mode()
    def score(
        self, images: Sequence[Image.Image | str], texts: Sequence[str], batch_size: int = 64, progress: bool = False
    ) -> np.ndarray:
        """
        Cosine similarities, float64 of shape (pairs,). Texts are padded on the right and cut at the model's length.

        Raises:
            ValueError: if there are not as many texts as images.
        """
        if len(images) != len(texts):
            raise ValueError(f"There are {len(images)} images and {len(texts)} texts; a pair is one of each.")
        scores = []
        for start in tqdm(range(0, len(images), batch_size), desc="Scoring", disable=not progress, unit="batch"):
            inputs = self.processor(
                images=self.processor.image_processor.fetch_images(list(images[start : start + batch_size])),
                text=list(texts[start : start + batch_size]),
                padding=True,
                # CLIP pools at the end token: left padding would move the similarities
                padding_side="right",
                truncation=True,
                max_length=self.model.config.get_text_config().max_position_embeddings,
                return_tensors="pt",
            ).to(self.device)
            pixel_values = inputs.pop("pixel_values")
            image_embeddings = self.model.get_image_features(pixel_values=pixel_values).pooler_output
            text_embeddings = self.model.get_text_features(**inputs).pooler_output
            scores.append(torch.cosine_similarity(image_embeddings, text_embeddings).double().cpu())
        return torch.cat(scores).numpy() if scores else np.empty(0)
