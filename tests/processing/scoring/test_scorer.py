"""Scores against transformers' own processors and embeddings, one pair at a time."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, EfficientNetImageProcessorPil

from aligngpt.processing import AlignmentScorer

from ...tolerance import rounding  # noqa: TID252


CAPTIONS = ["two birds on a wire", "a red circle", "the quick brown fox jumps over the lazy dog on a blue field"] * 2


def slow_scores(folder, images, captions, **padding):
    """Each pair through transformers' image processor, tokenizer and model by itself."""
    model = AutoModel.from_pretrained(folder).eval()
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    scores = []
    for image, caption in zip(images, captions, strict=True):
        pixels = image_processor(image, return_tensors="pt")
        tokens = tokenizer(caption, truncation=True, return_tensors="pt", **padding)
        with torch.no_grad():
            image_embedding = model.get_image_features(**pixels).pooler_output[0].double().numpy()
            text_embedding = model.get_text_features(**tokens).pooler_output[0].double().numpy()
        lengths = np.linalg.norm(image_embedding) * np.linalg.norm(text_embedding)
        scores.append(image_embedding @ text_embedding / lengths)
    return scores


@pytest.fixture(scope="module")
def images(make_image):
    return [
        make_image(seed, size) for seed, size in enumerate([(60, 40), (24, 24), (31, 90), (50, 49), (7, 5), (3, 64)])
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_scores_are_those_of_one_pair_at_a_time(kind, num_workers, images, request):
    folder = request.getfixturevalue(f"{kind}_scorer")
    padding = {} if kind == "clip" else {"padding": "max_length"}
    expected = slow_scores(folder, images, CAPTIONS, **padding)
    scores = AlignmentScorer(str(folder)).score(images, CAPTIONS, batch_size=4, num_workers=num_workers)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(scores, expected, atol=rounding(1.0))


def test_paths_and_pictures_score_alike(clip_scorer, images, tmp_path, monkeypatch):
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    scorer = AlignmentScorer(str(clip_scorer))
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / "0.png"), *(f"{index}.png" for index in range(1, len(images)))]
    np.testing.assert_array_equal(scorer.score(paths, CAPTIONS), scorer.score(images, CAPTIONS))


def test_a_batch_that_does_not_fit_is_halved(clip_scorer, images, monkeypatch):
    scorer = AlignmentScorer(str(clip_scorer))
    expected = scorer.score(images, CAPTIONS)
    seen, embed = [], scorer._embed

    def embed_with_little_memory(image_inputs, text_inputs):
        seen.append(len(image_inputs["pixel_values"]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError
        return embed(image_inputs, text_inputs)

    monkeypatch.setattr(scorer, "_embed", embed_with_little_memory)
    np.testing.assert_allclose(scorer.score(images, CAPTIONS), expected, atol=rounding(1.0))
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1]


def test_half_precision_is_close(clip_scorer, images):
    exact = AlignmentScorer(str(clip_scorer)).score(images, CAPTIONS)
    scorer = AlignmentScorer(str(clip_scorer), dtype="bfloat16")
    assert scorer.model.dtype == torch.bfloat16
    np.testing.assert_allclose(scorer.score(images, CAPTIONS), exact, atol=0.05)


def test_an_image_processor_that_does_more_is_refused(clip_scorer, tmp_path):
    shutil.copytree(clip_scorer, tmp_path / "align")
    EfficientNetImageProcessorPil(  # ALIGN's
        size={"height": 24, "width": 24}, rescale_offset=True, include_top=True
    ).save_pretrained(tmp_path / "align")
    with pytest.raises(TypeError, match="does more than to resize"):
        AlignmentScorer(str(tmp_path / "align"))


def test_a_model_without_both_embeddings_is_refused(text_folder):
    with pytest.raises(TypeError, match="is no dual encoder"):
        AlignmentScorer(str(text_folder))


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        ([Image.new("RGB", (8, 8))], [], "1 images and 0 texts"),
        ([Image.new("RGB", (8, 8)), "no.png"], ["a", "b"], "Pair 1: There is no image"),
        ([Image.new("RGB", (8, 8)), None], ["a", "b"], "Pair 1: there is no image"),
        ([Image.new("RGB", (8, 8))], [" "], "Pair 0: The caption is empty"),
        ([Image.new("RGB", (1, 200_000))], ["a"], "one side is more than 100 times the other"),
    ],
)
def test_pairs_that_cannot_be_scored_are_named(images, captions, message, clip_scorer):
    with pytest.raises(ValueError, match=message):
        AlignmentScorer(str(clip_scorer)).score(images, captions)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_gpu_scores_in_float16_nearly_as_the_cpu(num_workers, clip_scorer, images):
    expected = AlignmentScorer(str(clip_scorer), device="cpu").score(images, CAPTIONS)
    scorer = AlignmentScorer(str(clip_scorer))
    assert (scorer.device.type, scorer.model.dtype) == ("cuda", torch.float16)
    np.testing.assert_allclose(scorer.score(images, CAPTIONS, num_workers=num_workers), expected, atol=5e-3)
