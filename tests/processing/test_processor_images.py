"""Images as the processor takes them: in every form, in batches with rows without one, and those it refuses."""

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image


def test_paths_urls_base64_arrays_and_images_give_the_same_pixels(processor, make_image, tmp_path):
    image = make_image(0)
    path = tmp_path / "image.png"
    image.save(path)
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        encoded = base64.b64encode(buffer.getvalue()).decode()
    expected = processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/image.png"
        for source in (str(path), url, encoded, f"data:image/png;base64,{encoded}", np.asarray(image)):
            pixels = processor(images=source, text="<image>", return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(pixels, expected)
        for content in ({"path": str(path)}, {"base64": encoded}, {"url": url}, {"image": image}):
            chat = [{"role": "user", "content": [{"type": "image", **content}]}]
            inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
            torch.testing.assert_close(inputs["pixel_values"], expected)
        server.shutdown()


def test_padding_to_a_square_uses_the_mean_colour(processor, make_image):
    image = make_image(0, size=(32, 16))
    mean = tuple(int(channel * 255) for channel in processor.image_processor.image_mean)
    square = Image.new("RGB", (32, 32), mean)
    square.paste(image, (0, 8))
    padded = processor(images=image, text="<image>", return_tensors="pt")["pixel_values"]
    expected = processor(images=square, text="<image>", return_tensors="pt", do_pad=False)["pixel_values"]
    torch.testing.assert_close(padded, expected)


def test_stage_1_crops_the_centre(processor, make_image):
    image = make_image(0, size=(32, 16))
    cropped = processor(images=image, text="<image>", return_tensors="pt", do_pad=False)["pixel_values"]
    expected = processor(images=image.crop((8, 0, 24, 16)), text="<image>", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(cropped, expected)


def test_a_corrupt_image_is_an_error(processor, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    with pytest.raises(ValueError, match="Image 0 .*broken.png.*no image of a known format"):
        processor(images=str(path), text="<image>")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["no.png"], "Image 0 .*no.png.*no such file, nor is it a URL or base64"),
        ([["picture"], ["picture", b"nonsense"]], "Image 1 of sample 1: .*no image of a known format"),
        (["picture", 7], "Image 1: An image is a path, bytes or a picture, not int"),
        (["http://127.0.0.1:1/a.png"], "Image 0 .*127.0.0.1.*cannot be fetched"),
        (["data:image/png;base64,???"], "Image 0 .*no base64"),
        (["/dev/zero"], "Image 0 .*device"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(processor, make_image, images, message):
    images = [
        [make_image(0) if i == "picture" else i for i in row] if isinstance(row, list) else row for row in images
    ]
    images = [make_image(0) if image == "picture" else image for image in images]
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=["<image>", "<image><image>"])


@pytest.mark.parametrize("images", [None, [], [[]], [None], (), np.zeros((0, 3, 8, 8), dtype=np.uint8)])
def test_no_images_beside_text_are_no_error(processor, images):
    assert processor(images=images, text=["a mat"])["input_ids"] == processor(text=["a mat"])["input_ids"]


@pytest.mark.parametrize("as_array", [True, False])
def test_a_sample_without_an_image_may_stand_beside_one_with(processor, make_image, as_array):
    image = np.asarray(make_image(0)) if as_array else make_image(0)
    expected = processor(images=[[image], []], text=["<image>", "a"])["input_ids"]
    for images in ([image, None], [[image], None], [(image,), ()]):
        assert processor(images=images, text=["<image>", "a"])["input_ids"] == expected


@pytest.mark.parametrize("as_type", [np.uint8, np.float32, np.int64, torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("channels_first", [True, False])
def test_a_batch_of_arrays_is_several_pictures(processor, make_image, as_type, channels_first):
    pictures = [make_image(seed) for seed in (0, 1)]
    expected = processor(images=pictures, text="<image><image>")["pixel_values"]
    batch = np.stack([np.asarray(picture) for picture in pictures])
    batch = batch.transpose(0, 3, 1, 2) if channels_first else batch
    batch = torch.from_numpy(batch.copy()).to(as_type) if isinstance(as_type, torch.dtype) else batch.astype(as_type)
    for images in (batch, list(batch), [batch]):
        text = ["<image><image>"]
        np.testing.assert_array_equal(processor(images=images, text=text)["pixel_values"], expected)


def test_arrays_from_0_to_1_are_pictures_unless_they_are_not_to_be_rescaled(processor, make_image):
    picture = make_image(0)
    expected = processor(images=picture)["pixel_values"]
    scaled = np.asarray(picture, dtype=np.float32) / 255
    np.testing.assert_array_equal(processor(images=scaled)["pixel_values"], expected)
    unscaled = processor(images=scaled, do_rescale=False, do_resize=False, do_pad=False)["pixel_values"]
    as_transformers = processor.image_processor(scaled, do_rescale=False, do_resize=False, do_pad=False)
    np.testing.assert_array_equal(unscaled, as_transformers["pixel_values"])


def test_normalised_values_are_no_picture(processor):
    with pytest.raises(ValueError, match="Image 0: Values from -1.0 to 1.0 are of no known range"):
        processor(images=np.linspace(-1, 1, 108, dtype=np.float32).reshape(6, 6, 3))


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_a_shape_that_can_be_read_in_two_ways_is_read_as_is_usual(processor, make_image, height):
    picture = make_image(0, (height, 3))
    expected = processor(images=picture)["pixel_values"]
    rows = np.asarray(picture)
    tensor = torch.from_numpy(rows.transpose(2, 0, 1).copy())
    for images in (rows, tensor):
        np.testing.assert_array_equal(processor(images=images)["pixel_values"], expected)
    for images, layout in ((tensor.numpy(), "channels_first"), (torch.from_numpy(rows.copy()), "channels_last")):
        pixels = processor(images=images, input_data_format=layout)["pixel_values"]
        np.testing.assert_array_equal(pixels, expected)
