"""Faulty and unusual image files, each a real one: what is opened and how, what is refused as what."""

import io
import ntpath
import os

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from aligngpt.processing.corpus import images
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import open_image


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, file_format, **options)
        return file.getvalue()


@pytest.fixture
def picture(make_image):
    return make_image(0, (40, 30))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_a_plain_file_is_opened_as_it_is(picture):
    image, converted = open_image(encode(picture, "PNG"))
    assert converted == [] and image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (lambda picture: b"", "zero_sized"),
        (lambda picture: b"<html>404 Not Found</html>", "corrupt"),
        (lambda picture: encode(picture, "PNG")[:12] + b"?" * 500, "corrupt"),
        (lambda picture: encode(picture, "PNG")[:600] + bytes(300) + encode(picture, "PNG")[900:], "corrupt"),
        (lambda picture: encode(picture, "JPEG")[:-300], "truncated"),
        (lambda picture: encode(picture, "PNG")[:-500], "truncated"),
        (lambda picture: encode(Image.new("1", (9500, 9500)), "PNG"), "decompression_bomb"),
        (lambda picture: encode(Image.new("1", (20_000, 10_000)), "PNG"), "decompression_bomb"),
    ],
    ids=["zero-sized", "web page", "broken header", "broken data", "short jpeg", "short png", "bomb", "large bomb"],
)
def test_a_broken_file_is_refused_by_its_kind(data, kind, picture):
    with pytest.raises(Fault) as refused:
        open_image(data(picture))
    assert refused.value.kind == kind


def test_a_truncated_file_is_refused_though_a_library_allowed_them(picture, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(Fault, match="truncated"):
        open_image(encode(picture, "JPEG")[:-300])


def test_of_an_animation_the_first_frame_is_taken(picture, make_image):
    frames = [make_image(seed, (40, 30)) for seed in (1, 2)]
    image, converted = open_image(encode(picture, "WEBP", lossless=True, save_all=True, append_images=frames))
    assert converted == ["animated"]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture))


def test_a_palette_and_cmyk_become_rgb(picture):
    few = picture.quantize(64)
    image, converted = open_image(encode(few, "PNG"))
    assert converted == ["palette"]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(few.convert("RGB")))
    cmyk = picture.convert("CMYK")
    image, converted = open_image(encode(cmyk, "TIFF"))
    assert converted == ["cmyk"]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(file_format):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    image, converted = open_image(encode(Image.fromarray(values), file_format))
    assert converted == ["16-bit"]
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.arange(256).reshape(16, 16))


def test_a_rotated_photograph_is_turned_upright(picture):
    image, converted = open_image(encode(picture, "PNG", exif=exif(6)))
    assert converted == ["exif_rotated"]
    np.testing.assert_array_equal(np.asarray(image), np.rot90(np.asarray(picture), -1))
    assert open_image(encode(picture, "PNG", exif=exif(1)))[1] == []


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "images/../../secret.png"])
def test_a_path_that_leaves_the_image_folder_is_refused(path, picture, tmp_path):
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "secret.png")
    with pytest.raises(Fault, match="outside") as refused:
        open_image(path, str(tmp_path / "images"))
    assert refused.value.kind == "outside_image_folder"


def test_paths_inside_the_image_folder_are_opened(picture, tmp_path, monkeypatch):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    picture.save(tmp_path / "images" / "a" / "x.png")
    picture.save(tmp_path / "elsewhere" / "y.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "linked")  # by the folder's owner
    monkeypatch.chdir(tmp_path)
    for path in ("a/x.png", "a/../a/x.png", str(tmp_path / "images" / "a" / "x.png"), "linked/y.png"):
        assert open_image(path, "images")[0].size == picture.size
    assert open_image({"bytes": None, "path": "a/x.png"}, "images")[0].size == picture.size


@pytest.mark.parametrize("path", ["no.png", "", ".", "http://example.org/a.png", "a\0b.png"])
def test_a_file_that_is_not_there_is_missing(path, tmp_path):
    with pytest.raises(Fault) as refused:
        open_image(path, str(tmp_path))
    assert refused.value.kind == "missing"


def test_a_path_without_an_image_folder_is_an_error():
    with pytest.raises(ValueError, match="image folder"):
        open_image("a.png")


@pytest.mark.parametrize("path", ["a\\b\\x.png", "a\\b/x.png", ".\\a\\b\\x.png"])
def test_a_path_that_windows_wrote_is_found(path, picture, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    picture.save(tmp_path / "a" / "b" / "x.png")
    assert open_image(path, str(tmp_path))[0].size == picture.size


def test_a_file_whose_name_has_a_backslash_is_found_first(picture, make_image, tmp_path):
    (tmp_path / "a").mkdir()
    make_image(1, (5, 5)).save(tmp_path / "a" / "x.png")
    picture.save(tmp_path / "a\\x.png")
    assert open_image("a\\x.png", str(tmp_path))[0].size == picture.size


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("D:\\images\\x.png", "outside_image_folder"),
        ("D:/images/x.png", "outside_image_folder"),
        ("\\\\server\\share\\x.png", "outside_image_folder"),
        ("\\windows\\x.png", "outside_image_folder"),
        ("..\\..\\x.png", "outside_image_folder"),
        ("no\\x.png", "missing"),
        ("\ud800.png", "missing"),
    ],
)
def test_a_path_of_another_machine_is_a_fault(path, kind, tmp_path):
    with pytest.raises(Fault) as refused:
        open_image(path, str(tmp_path))
    assert refused.value.kind == kind


def test_a_path_on_another_drive_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(images.os, "path", ntpath)
    with pytest.raises(Fault) as refused:
        open_image("D:\\images\\x.png", "C:\\images")
    assert refused.value.kind == "outside_image_folder"


@pytest.mark.parametrize("name", ["pipe", "link to a pipe", "/dev/zero"])
def test_a_pipe_or_a_device_is_refused_before_it_is_read(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to(tmp_path / "pipe")
    with pytest.raises(Fault, match="pipe or a device") as refused:
        open_image(name, "/dev" if name.startswith("/") else str(tmp_path))
    assert refused.value.kind == "unreadable"


@pytest.mark.parametrize("folder", ["a [b] c", "a*?", "ünï 图"])
def test_a_folder_may_have_any_name(folder, picture, tmp_path):
    (tmp_path / folder).mkdir()
    picture.save(tmp_path / folder / "x [1].png")
    assert open_image("x [1].png", str(tmp_path / folder))[0].size == picture.size


def test_a_picture_without_width_or_no_picture_at_all_is_refused():
    with pytest.raises(Fault) as refused:
        open_image(Image.new("RGB", (0, 5)))
    assert refused.value.kind == "zero_sized"
    with pytest.raises(Fault, match="not int"):
        open_image(7)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation, picture):
    data = encode(picture, "PNG", exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(open_image(data)[0]), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation, picture):
    assert open_image(encode(picture, "PNG", exif=exif(orientation)))[1] == []


def test_broken_metadata_does_not_spoil_an_image(picture):
    data = encode(picture, "WEBP", lossless=True, exif=b"garbage!")
    np.testing.assert_array_equal(np.asarray(open_image(data)[0]), np.asarray(picture))
    tags = exif(6)
    tags[0x0128] = 2
    data = encode(picture, "JPEG", exif=tags)
    for short, text in ((b"\x28\x01\x03\x00", b"\x28\x01\x02\x00"), (b"\x01\x28\x00\x03", b"\x01\x28\x00\x02")):
        data = data.replace(short, text)  # a unit that is text, which Pillow reads and cannot write
    with pytest.raises(Exception, match="."):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image, converted = open_image(data)
    assert converted == ["exif_rotated"] and image.size == (30, 40)


def test_a_path_that_no_file_can_have_is_unreadable(tmp_path):
    with pytest.raises(Fault) as refused:
        open_image("A" * 500, str(tmp_path))
    assert refused.value.kind == "unreadable" and len(str(refused.value)) < 400
