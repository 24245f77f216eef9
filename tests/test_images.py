"""Image sources and patches: what is read, how it is split, which files are refused."""

import socket
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import skimage.io
import torch

from sigexp.data import images as module
from sigexp.data.digits import digit_source
from sigexp.data.images import PHOTOGRAPHS, ImageSource, image_source, read_image
from sigexp.data.patches import check_patches, check_sizes, downsample, flip, patch_sampler, to_float, whole_images
from sigexp.datasets.bayer import bayer_mosaic
from sigexp.datasets.color import rgb_to_xyz


def picture(rows: int = 48, columns: int = 64, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, (rows, columns, 3), dtype=dtype, endpoint=True)


def in_memory(**splits: list[np.ndarray]) -> ImageSource:
    return ImageSource(
        names={split: [f"{split} {i}" for i in range(len(images))] for split, images in splits.items()},
        shapes={split: [image.shape[:2] for image in images] for split, images in splits.items()},
        source={"images": "in memory"},
        ragged=True,
        load=lambda: splits,
    )


def write(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture(seed=i)).save(path)
    return folder


def test_photographs_come_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    module._photographs.cache_clear()
    source = image_source("photographs")
    for split, names in PHOTOGRAPHS.items():
        assert tuple(source.names[split]) == names
        for image, shape in zip(source.images(split), source.shapes[split], strict=True):
            assert image.dtype == np.uint8
            assert image.shape == (*shape, 3)
    assert "scikit-image" in source.source["images"]
    assert source.source["test"] == "chelsea.png, coffee.png"


def test_photographs_are_split_by_scene():
    scenes = {split: {name.split("_")[0] for name in names} for split, names in PHOTOGRAPHS.items()}
    assert not scenes["train"] & (scenes["valid"] | scenes["test"])
    assert not scenes["valid"] & scenes["test"]


def test_photographs_are_decoded_once_and_as_skimage_does():
    first, again = image_source("photographs").images("test"), image_source("photographs").images("test")
    assert all(a is b for a, b in zip(first, again, strict=True))
    where = Path(skimage.__file__).parent / "data"
    for name, image in zip(PHOTOGRAPHS["test"], first, strict=True):
        np.testing.assert_array_equal(image, skimage.io.imread(where / name))


def test_cifar10_is_split_and_taken_whole(monkeypatch):
    stack = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    monkeypatch.setattr(module, "fetch", lambda name: {"cifar10": "there"}[name])
    monkeypatch.setattr(module, "read_cifar10", lambda folder: {"train": stack[:50], "test": stack[50:]})
    module._cifar10.cache_clear()
    problem = rgb_to_xyz(images="cifar10")
    module._cifar10.cache_clear()
    assert not problem.ragged
    assert problem.sizes["test"] == 10
    assert problem.source["images"] == "CIFAR-10 (train 45, valid 5, test 10)"
    known = {
        split: {image.tobytes() for image in part} for split, part in (("train", stack[:45]), ("valid", stack[45:50]))
    }
    for split, part in known.items():
        drawn = (problem.examples(split, 0, 40).inputs * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert {np.ascontiguousarray(image).tobytes() for image in drawn} <= part
    tested = problem.examples("test").inputs.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(tested, to_float(stack[50:]))


def test_folder_is_sorted_and_split_by_image(tmp_path):
    names = [f"{i:02d}.png" for i in range(10)]
    source = image_source(str(write(tmp_path, *reversed(names), ".hidden.png", "notes/extra.JPG")))
    assert source.names == {"train": names[:8], "valid": names[8:9], "test": [names[9], "notes/extra.JPG"]}
    assert source.source["images"].startswith(f"folder {tmp_path.name}, 11 images, sha256 ")
    assert str(tmp_path.parent) not in str(source.source)


def test_folder_of_three_gives_one_to_each_split(tmp_path):
    source = image_source(str(write(tmp_path, "a.png", "b.png", "c.png")))
    assert source.names == {"train": ["a.png"], "valid": ["b.png"], "test": ["c.png"]}


def test_folder_with_split_folders_keeps_them(tmp_path):
    source = image_source(str(write(tmp_path, "train/z.png", "valid/b.png", "test/a.png", "test/sub/c.png")))
    assert source.names == {
        "train": ["train/z.png"],
        "valid": ["valid/b.png"],
        "test": ["test/a.png", "test/sub/c.png"],
    }


def test_source_of_a_folder_changes_with_a_pixel(tmp_path):
    before = image_source(str(write(tmp_path, "a.png", "b.png", "c.png"))).source
    assert image_source(str(tmp_path)).source == before
    PIL.Image.fromarray(picture(seed=9)).save(tmp_path / "b.png")
    assert image_source(str(tmp_path)).source != before


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp"])
def test_lossless_formats_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(picture()).save(path)
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    colour, grey = picture(dtype=np.uint16), picture(seed=1, dtype=np.uint16)[..., 0]
    cv2.imwrite(str(tmp_path / f"colour.{suffix}"), colour[..., ::-1])
    cv2.imwrite(str(tmp_path / f"grey.{suffix}"), grey)
    np.testing.assert_array_equal(read_image(tmp_path / f"colour.{suffix}"), colour)
    np.testing.assert_array_equal(read_image(tmp_path / f"grey.{suffix}"), np.stack([grey] * 3, -1))


def test_grey_alpha_and_palette_become_three_channels(tmp_path):
    colour = PIL.Image.fromarray(picture())
    alpha = PIL.Image.fromarray(picture(seed=1)[..., 0])
    transparent = colour.copy()
    transparent.putalpha(alpha)
    transparent.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), picture())
    colour.convert("L").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([np.array(colour.convert("L"))] * 3, -1))
    colour.convert("P").save(tmp_path / "palette.png", transparency=3)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.array(colour.convert("P").convert("RGB")))


@pytest.mark.parametrize(("word", "hint"), [("photograps", "photographs"), ("cifar-10", "cifar10")])
def test_missing_folder_says_what_else_there_is(word, hint):
    with pytest.raises(ValueError, match=rf"dataset.images={word}: no such folder.*did you mean {hint}\?"):
        image_source(word)


def test_a_name_too_long_for_a_folder_is_none():
    with pytest.raises(ValueError, match=r"dataset.images=y+: no such folder"):
        image_source("y" * 4000)
    with pytest.raises(ValueError, match=r"dataset.digits=y+: expected .*IDX files"):
        digit_source("y" * 4000)


def test_empty_name_is_no_folder():
    with pytest.raises(ValueError, match="no such folder; expected 'photographs', 'cifar10' or a folder"):
        image_source("")


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"no images; expected files ending in .*\.png"):
        image_source(str(tmp_path))


def test_folder_with_two_images(tmp_path):
    with pytest.raises(ValueError, match=r"2 images \(a.png, b.png\); expected at least 3"):
        image_source(str(write(tmp_path, "a.png", "b.png")))


def test_folder_with_some_split_folders_only(tmp_path):
    with pytest.raises(ValueError, match=r"has train/, test/ but not all"):
        image_source(str(write(tmp_path, "train/a.png", "test/b.png")))
    (tmp_path / "valid").mkdir()
    with pytest.raises(ValueError, match="valid: no images"):
        image_source(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"no picture at all", "not a readable PNG")]
)
def test_file_that_is_no_image_is_named(tmp_path, content, message):
    write(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"b.png: {message}"):
        image_source(str(tmp_path))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats_are_read_nearly(tmp_path, suffix):
    smooth = cv2.GaussianBlur(picture(), (0, 0), 4)
    PIL.Image.fromarray(smooth).save(tmp_path / f"a.{suffix}", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / f"a.{suffix}").astype(float), smooth, atol=12)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_truncated_test_image_is_found_before_training(tmp_path, suffix):
    write(tmp_path, "a.png", "b.png", f"c.{suffix}")
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"c.{suffix}: (broken or truncated|not a readable)"):
        image_source(str(tmp_path)).images("train")


def test_truncated_sixteen_bit_image(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture(dtype=np.uint16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a.png: broken or truncated"):
        read_image(path)


def test_float_image_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    PIL.Image.fromarray(picture()[..., 0].astype(np.float32)).save(path)
    with pytest.raises(ValueError, match=r"a.tif: 32 bits a channel; expected an image of 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("side", [13_000, 50_000])
def test_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch, side):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    write(tmp_path, "a.png", "b.png")
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    (tmp_path / "c.png").write_bytes(bomb)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", None)
    with pytest.raises(ValueError, match=r"c.png: .*too many.*expected at most 150 million"):
        image_source(str(tmp_path))


def test_folder_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOTAL_PIXELS", 3 * 48 * 64 - 1)
    with pytest.raises(ValueError, match="million pixels in all, expected at most"):
        image_source(str(write(tmp_path, "a.png", "b.png", "c.png")))


def test_image_too_small_for_the_patch_is_named(tmp_path):
    write(tmp_path, "a.png", "b.png", "c.png")
    PIL.Image.fromarray(picture(40, 30)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png: 30x40 pixels, too small for dataset.patch_size=32"):
        rgb_to_xyz(images=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"a.png: 64x48 pixels \(32x24 after downsampling\), too small.*dataset.scale=full"
    ):
        bayer_mosaic(images=str(tmp_path))


@pytest.mark.parametrize(("size", "scales"), [(1, (1,)), (0, (1,)), (32, ()), (32, (2, 4)), (32, (0, 1))])
def test_patch_fields_are_checked(size, scales):
    with pytest.raises(ValueError, match=r"dataset\.(patch_size|scales)="):
        check_patches(size, scales)


def test_test_size_is_checked():
    with pytest.raises(ValueError, match=r"dataset.test_size=0: expected at least 1, or null"):
        rgb_to_xyz(test_size=0)
    assert rgb_to_xyz(test_size=1).sizes["test"] == 1
    assert rgb_to_xyz(test_size=99).sizes["test"] == 2


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_downsample_is_the_mean_over_blocks(factor):
    image = picture(51, 66)
    rows, columns = 51 // factor, 66 // factor
    blocks = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    np.testing.assert_allclose(downsample(image, factor), blocks.mean((1, 3)) / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_patches_are_windows_of_the_images(dtype):
    image = picture(12, 10, dtype=dtype)
    patches = patch_sampler(in_memory(train=[image]), size=8)(np.random.default_rng(0), "train", 200)
    assert patches.shape == (200, 3, 8, 8)
    assert patches.dtype == np.float32
    windows = {to_float(image[r : r + 8, c : c + 8]).transpose(2, 0, 1).tobytes() for r in range(5) for c in range(3)}
    assert {np.ascontiguousarray(patch).tobytes() for patch in patches} == windows


def test_patches_come_from_every_scale_that_fits():
    image = picture(20, 24)
    patches = patch_sampler(in_memory(train=[image], valid=[image]), size=8, scales=(1, 2, 4))
    levels = [to_float(image), downsample(image, 2)]  # at 4 an image of 5x6 has no room for 8x8
    windows = [
        {
            level[r : r + 8, c : c + 8].transpose(2, 0, 1).tobytes()
            for r in range(level.shape[0] - 7)
            for c in range(level.shape[1] - 7)
        }
        for level in levels
    ]
    drawn = [np.ascontiguousarray(patch).tobytes() for patch in patches(np.random.default_rng(0), "train", 400)]
    shares = [sum(patch in found for patch in drawn) / 400 for found in windows]
    assert sum(shares) == 1
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    valid = patches(np.random.default_rng(0), "valid", 50)
    assert all(np.ascontiguousarray(patch).tobytes() in windows[0] for patch in valid)


def test_photographs_weigh_the_same_whatever_their_size():
    dark, bright = np.zeros((200, 200, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    patches = patch_sampler(in_memory(train=[dark, bright]), size=8)(np.random.default_rng(0), "train", 1000)
    assert patches.mean() == pytest.approx(0.5, abs=0.05)


def test_flips_are_the_eight_symmetries_of_the_square():
    square = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    turned = flip(np.repeat(square, 8, 0), np.arange(8))[:, 0]
    np.testing.assert_array_equal(turned[0], square[0, 0])
    rotations = [np.rot90(square[0, 0], k) for k in range(4)]
    expected = {np.ascontiguousarray(s).tobytes() for r in rotations for s in (r, r[:, ::-1])}
    assert {np.ascontiguousarray(s).tobytes() for s in turned} == expected
    assert len(expected) == 8


def test_flips_are_for_training_only():
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    patches = patch_sampler(in_memory(train=[ramp], valid=[ramp]), size=8, flips=True)
    slopes = {split: patches(np.random.default_rng(0), split, 200)[:, 0, 1, 0] for split in ("train", "valid")}
    tops = {split: patches(np.random.default_rng(0), split, 200)[:, 0, 0, 0] for split in ("train", "valid")}
    signs = {split: np.sign(np.round((slopes[split] - tops[split]) * 255)) for split in slopes}
    assert set(signs["train"]) == {-1.0, 0.0, 1.0}
    assert set(signs["valid"]) == {1.0}


def test_whole_images_of_different_sizes_are_taken_one_by_one():
    source = in_memory(test=[picture(8, 9), picture(9, 8)])
    np.testing.assert_array_equal(
        whole_images(source, "test", np.array([1]))[0].transpose(1, 2, 0) * 255, picture(9, 8)
    )
    with pytest.raises(ValueError, match="differ in size"):
        whole_images(source, "test", np.array([0, 1]))


def test_check_sizes_passes_what_fits():
    check_sizes(in_memory(train=[picture(64, 64)]), 32, reduction=2)
    with pytest.raises(ValueError, match="train 0: 63x64 pixels"):
        check_sizes(in_memory(train=[picture(64, 63)]), 32, reduction=2)


@pytest.mark.parametrize("make", [rgb_to_xyz, bayer_mosaic])
def test_examples_are_a_pure_function_of_seed_split_and_index(make):
    problem, again, other = make(), make(), make(seed=1)
    index = torch.tensor([3, 700, 251, 3])
    batch = problem.sample("train", index)
    for row, i in enumerate(index):
        one = again.sample("train", i[None])
        torch.testing.assert_close(one.inputs[0], batch.inputs[row], rtol=0, atol=0)
        torch.testing.assert_close(one.targets[0], batch.targets[row], rtol=0, atol=0)
    assert not torch.equal(other.sample("train", index).inputs, batch.inputs)
    assert not torch.equal(problem.sample("valid", index).inputs, batch.inputs)
