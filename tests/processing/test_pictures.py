"""Every door opens a picture in one way: the same pixels, or the same kind of fault, whoever asks, in any form."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from aligngpt.processing.corpus.faults import FAULT_KINDS, Fault
from aligngpt.processing.corpus.images import open_image
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.image_conversion_aligngpt import ImageError
from aligngpt.processing.scoring.preparation import PairPreparer
from aligngpt.training.collator import AlignGPTDataCollator

from .odd_images import PILLOW_READS_YCBCR, TWELVE_COLOURS, odd_images


IMAGES = odd_images()
# Decoders of lossy formats, and the profile of LAB, may differ by a little
INEXACT = (".jpg", ".avif", "jpeg.png", "lab.tiff")
# The image processor does nothing, so that its pixels are the picture's
BARE = dict.fromkeys(("do_resize", "do_center_crop", "do_pad", "do_normalize"), False) | {"rescale_factor": 1.0}

STRANGER = """
import os, sys
sys.modules["aligngpt"] = None
import numpy as np
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({checkpoint!r}, trust_remote_code=True)
for name, value in {bare!r}.items():
    setattr(processor.image_processor, name, value)
seen = {{}}
def ask(door, source):
    try:
        seen[door] = np.moveaxis(processor(images=source, return_tensors="np")["pixel_values"][0], 0, -1)
    except ValueError as error:
        seen[door] = np.array(error.kind)
for name in sorted(os.listdir("files")):
    path = os.path.join("files", name)
    ask(name + "/path", path)
    ask(name + "/bytes", open(path, "rb").read())
np.savez("seen.npz", **seen)
print(type(processor).__module__)
"""


def check(name, seen):
    """Whether a door saw the picture of a file, or the fault, that was worked out for it."""
    expected = IMAGES[name][1]
    if isinstance(expected, str) or isinstance(seen, str):
        assert isinstance(seen, str) and seen == expected, (name, seen)
    else:
        assert seen.shape == expected.shape, name
        assert np.abs(seen.astype(int) - expected).max() <= (3 if name.endswith(INEXACT) else 0), name


def ask(door):
    """What a door sees: pixels (height, width, 3), or a kind of fault."""
    try:
        return np.asarray(door())
    except (Fault, ImageError) as error:
        return error.kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, (data, _) in IMAGES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def bare(composed):
    """A processor that leaves pixels as they are; whatever an image's size, it has a token."""
    return type(composed[1])(
        type(composed[1].image_processor)(**BARE),
        composed[1].tokenizer,
        patch_size=10_000,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=composed[1].chat_template,
    )


def first_pixels(inputs):
    return np.moveaxis(np.asarray(inputs["pixel_values"][0]), 0, -1)


def see_through_processor(processor, source):
    return lambda: first_pixels(processor(images=source, text="<image>"))


def see_through_chat(processor, **content):
    chat = [{"role": "user", "content": [{"type": "image", **content}]}]
    return lambda: first_pixels(processor.apply_chat_template(chat, tokenize=True, return_dict=True))


def test_the_corpus_has_at_least_forty_files_of_every_kind_of_fault():
    kinds = {expected for _, expected in IMAGES.values() if isinstance(expected, str)}
    assert len(IMAGES) >= 40
    assert kinds == {"zero_sized", "truncated", "corrupt", "decompression_bomb", "extreme_shape"} < FAULT_KINDS.keys()


@pytest.mark.parametrize("name", IMAGES)
def test_a_corpus_sees_what_the_file_shows(name, folder):
    check(name, ask(lambda: open_image(name, str(folder))[0]))
    check(name, ask(lambda: open_image(IMAGES[name][0])[0]))
    check(name, ask(lambda: open_image({"bytes": IMAGES[name][0], "path": None})[0]))


@pytest.mark.parametrize("name", IMAGES)
def test_a_scorer_sees_what_the_file_shows(name, folder, composed):
    preparer = PairPreparer(CLIPImageProcessorPil(**BARE), composed[1].tokenizer, 16, "longest", str(folder))
    batch = preparer.__getitems__([read_record({"image": name, "caption": "a bird"})])
    fault = batch["pairs"][0].get("fault")
    check(name, fault.kind if fault else batch["image_inputs"]["pixel_values"][0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", IMAGES)
def test_training_sees_what_the_file_shows(name, folder, bare):
    collator = AlignGPTDataCollator(bare, image_folder=str(folder), on_bad_row="skip")
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bird."}]
    batch = collator([{"id": "a", "images": [name], "messages": messages}])
    skipped = batch["skipped_rows"]
    check(name, skipped[0].kind if skipped else first_pixels(batch))


@pytest.mark.parametrize("name", IMAGES)
def test_the_processor_sees_what_the_file_shows_in_every_form(name, folder, bare):
    data, path = IMAGES[name][0], folder / name
    encoded = base64.b64encode(data).decode()
    for source in (data, str(path), path, f"data:image/png;base64,{encoded}", {"bytes": data, "path": None}):
        check(name, ask(see_through_processor(bare, source)))
    for content in ({"path": str(path)}, {"image": data}, {"url": f"data:;base64,{encoded}"}):
        check(name, ask(see_through_chat(bare, **content)))
    if len(encoded) >= 40:
        check(name, ask(see_through_chat(bare, base64=encoded)))


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_that_is_opened_again_stays_as_it_is(name):
    check(name, ask(lambda: open_image(open_image(IMAGES[name][0])[0])[0]))


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("name", IMAGES)
def test_the_processor_sees_what_the_file_shows_when_pillow_opened_it(name, folder, bare):
    try:
        Image.open(folder / name).close()
    except (OSError, Image.DecompressionBombError):
        pytest.skip("Pillow does not")
    for door in (
        lambda image: ask(see_through_processor(bare, image)),
        lambda image: ask(see_through_chat(bare, image=image)),
        lambda image: ask(lambda: open_image(image)[0]),
    ):
        with Image.open(folder / name) as image:
            check(name, door(image))


@pytest.mark.parametrize("name", [name for name in IMAGES if not isinstance(IMAGES[name][1], str)])
def test_the_processor_sees_what_the_file_shows_when_it_is_an_array(name, folder, bare):
    expected = IMAGES[name][1]
    with Image.open(folder / name) as image:
        image.load()
        is_plain = image.mode in ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F")
        # What the values do not tell: a turn, a transparent colour
        is_plain &= image.info.keys().isdisjoint({"transparency", "exif"})
        values = np.asarray(image) if is_plain else expected
    if name.startswith("12-in-16-bit-colour"):  # of which Pillow kept the upper bytes
        values = TWELVE_COLOURS if "key" not in name else expected
    tensor = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    for source in (values, values[None], tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1)):
        check(name, ask(see_through_processor(bare, source)))
        check(name, ask(see_through_chat(bare, image=source if source.ndim < 4 else source[0])))


def test_a_stranger_who_trusts_the_hubs_code_sees_the_same_through_its_copy(checkpoint, folder, run_python, tmp_path):
    (tmp_path / "files").symlink_to(folder)
    code = STRANGER.format(checkpoint=str(checkpoint), bare=BARE)
    module = run_python(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert module.startswith("transformers_modules.")
    with np.load(tmp_path / "seen.npz") as seen:
        assert len(seen) == 2 * len(IMAGES)
        for door, pixels in seen.items():
            check(door.partition("/")[0], pixels if pixels.ndim else str(pixels))


def test_ghostscript_is_not_run(folder, bare, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*arguments, **options):
        raise AssertionError("Ghostscript was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    assert ask(lambda: open_image("postscript.jpg", str(folder))[0]) == "corrupt"
    with Image.open(folder / "postscript.jpg") as image:
        assert ask(see_through_processor(bare, image)) == "corrupt"


def test_a_long_thin_picture_is_refused_before_it_costs_memory(checkpoint, run_python, tmp_path):
    Image.new("RGB", (1, 3000)).save(tmp_path / "thin.png")
    code = (
        "import resource, aligngpt\n"
        "from transformers import AutoProcessor\n"
        f"processor = AutoProcessor.from_pretrained({str(checkpoint)!r})\n"
        "processor.image_processor.size = {'shortest_edge': 336}\n"
        "processor(images='panorama.png', text='<image>', do_pad=False)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try:\n    processor(images='thin.png', text='<image>', do_pad=False)\n"
        "except ValueError as error:\n    print(error.kind, peak() - before)"
    )
    Image.new("RGB", (20, 1)).save(tmp_path / "panorama.png")
    output = run_python(code, tmp_path)
    kind, kilobytes = output.split()
    assert kind == "extreme_shape" and int(kilobytes) < 10_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("opaque.png", []),
        ("rgba.png", ["transparent"]),
        ("palette.png", ["palette"]),
        ("animated.gif", ["animated", "palette", "transparent"]),
        ("mpo.jpg", []),
        ("exif-6.jpg", ["exif_rotated"]),
        ("exif-6.tiff", ["exif_rotated"]),
        ("16-bit.png", ["16-bit"]),
        ("16-bit-colour.png", ["16-bit"]),
        ("exif-3-of-16-bits.png", ["16-bit", "exif_rotated"]),
        ("float-0-1.tiff", ["float"]),
        ("cmyk.jpg", ["cmyk"]),
        ("lab.tiff", ["lab"]),
        pytest.param(
            *("ycbcr.tiff", ["ycbcr"]),
            marks=pytest.mark.skipif(not PILLOW_READS_YCBCR, reason="Pillow reads TIFFs in YCbCr from 13 on"),
        ),
        ("long-side.png", ["reduced"]),
    ],
)
def test_what_had_to_be_converted_is_told(name, words):
    assert open_image(IMAGES[name][0])[1] == words


def test_a_dark_16_bit_picture_is_brightened_only_where_12_bits_hold_it(bare):
    for high, shown in ((4095, 255), (4096, 16), (255, 255), (65535, 255)):
        values = np.array([[0, high]], dtype=np.uint16)
        assert first_pixels(bare(images=values))[0, :, 0].tolist() == [0, shown]
