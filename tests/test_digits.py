"""Synthetic digits against slow drawing, their cache, and digit sources."""

import itertools

import numpy as np
import pytest
import scipy.ndimage

from sigexp.data import digits as digits_module
from sigexp.data import synthetic_digits as synthetic
from sigexp.data.digits import digit_source
from sigexp.data.synthetic_digits import Pose, draw_digits, glyphs, random_pose, render, stroke, synthetic_digits


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path / "cache"))
    digits_module._synthetic.cache_clear()
    yield tmp_path / "cache"
    digits_module._synthetic.cache_clear()


@pytest.fixture(scope="module")
def drawn():
    return draw_digits(0, "train", 2000)


def test_more_digits_never_change_the_earlier_ones():
    few, many = draw_digits(3, "valid", 20), draw_digits(3, "valid", synthetic.BLOCK + 7)
    assert len(many[0]) == synthetic.BLOCK + 7
    np.testing.assert_array_equal(many[0][:20], few[0])
    np.testing.assert_array_equal(many[1][:20], few[1])


def test_the_version_names_these_digits():
    """Where this fails on purpose, raise VERSION: else an old cache file would be taken for the new digits."""
    images, labels = draw_digits(0, "train", 100)
    assert synthetic.VERSION == 1
    assert labels[:12].tolist() == [4, 1, 4, 1, 6, 1, 4, 0, 1, 3, 1, 6]
    assert abs(int(images.sum()) - 2394356) < 100


def test_seeds_splits_and_blocks_draw_different_digits():
    pools = [draw_digits(0, "train", 40)[0], draw_digits(0, "test", 40)[0], draw_digits(1, "train", 40)[0]]
    pools.append(draw_digits(0, "train", synthetic.BLOCK + 40)[0][-40:])
    assert len({image.tobytes() for pool in pools for image in pool}) == 160


def test_render_equals_looking_up_one_pixel_after_the_other():
    pose = random_pose(np.random.default_rng(5), 6)
    table = glyphs()
    expected = np.zeros((6, 28, 28))
    for i in range(6):
        scale = np.sqrt(np.linalg.det(pose.matrix[i]))
        for y in range(28):
            for x in range(28):
                place = np.array([x, y]) + pose.bend[i, :, y, x] - pose.offset[i]
                cell = (np.linalg.solve(pose.matrix[i], place) + synthetic.MARGIN) / synthetic.STEP
                found = scipy.ndimage.map_coordinates(
                    table.distance[pose.glyph[i]], [[cell[1]], [cell[0]]], order=1, mode="nearest"
                )[0]
                ink = (pose.width[i] / 2 - found * scale) / pose.softness[i] + 0.5
                expected[i, y, x] = 255 * min(max(ink, 0), 1)
    np.testing.assert_allclose(render(pose), expected, atol=0.6)


def test_distances_equal_those_to_densely_sampled_strokes():
    rng = np.random.default_rng(0)
    places = rng.uniform(-5, 25, (50, 2))
    lines = [stroke("1,2 6,0 10.5,2.5 9.5,6.5 5,9"), stroke("5,9 12,20")]
    share = np.linspace(0, 1, 2001)[:, None]
    dense = np.concatenate([a + share * (b - a) for line in lines for a, b in itertools.pairwise(line)])
    brute = np.linalg.norm(places[:, None] - dense, axis=-1).min(1)
    np.testing.assert_allclose(synthetic.distances(places, lines), brute, atol=1e-4)


def test_strokes_pass_through_their_points_and_close():
    line = stroke("7,0 3,2 1,10 7,20 7,0")
    knots = np.array([(7, 0), (3, 2), (1, 10), (7, 20)], float)
    assert synthetic.distances(knots, [line]).max() < 0.1
    np.testing.assert_allclose(line[0], line[-1], atol=1e-12)


@pytest.mark.parametrize(("width", "shift"), [(3.0, 0.0), (2.0, 0.3), (2.6, -0.45)])
def test_a_pen_lays_as_much_ink_across_a_line_as_it_is_wide(width, shift):
    vertical = int(np.flatnonzero(glyphs().digit == 1)[0])
    pose = Pose(
        glyph=np.array([vertical]),
        matrix=np.eye(2)[None],
        offset=np.array([[7 + shift, 4.0]]),
        bend=np.zeros((1, 2, 28, 28), np.float32),
        width=np.array([width]),
        softness=np.array([1.0]),
    )
    image = render(pose)[0] / 255
    np.testing.assert_allclose(image[6:22].sum(1), width, atol=4 / 255)
    np.testing.assert_allclose(image[6:22] @ np.arange(28) / image[6:22].sum(1), 14 + shift, atol=0.01)
    assert image[:2].sum() == image[26:].sum() == 0


def test_digits_look_like_mnist_in_numbers(drawn):
    images, labels = drawn
    ink = images.astype(np.float64) / 255
    assert 0.10 < ink.mean() < 0.14  # MNIST: 0.131
    assert ink[:, 4:24, 4:24].sum() > 0.97 * ink.sum()
    assert np.mean(images.max((1, 2)) > 230) > 0.95
    centre = np.einsum("nyx,y->n", ink, np.arange(28)) / ink.sum((1, 2))
    assert abs(centre.mean() - 13.5) < 0.6
    assert np.all(abs(centre - 13.5) < 5)
    assert np.bincount(labels, minlength=10).min() > 140
    grey = np.mean((images > 12) & (images < 243)) / np.mean(images > 12)
    assert 0.3 < grey < 0.8  # anti-aliased, yet not all blur


def test_labels_say_what_is_drawn(drawn):
    images, labels = drawn
    flat = images.reshape(len(images), -1) / 255.0
    other, truth = draw_digits(0, "test", 300)
    nearest = [((flat - image.ravel() / 255.0) ** 2).sum(1).argmin() for image in other]
    assert np.mean(labels[nearest] == truth) > 0.9  # 0.1 by chance


def test_pools_are_kept_and_read_again(cache_folder, monkeypatch):
    first = synthetic_digits("valid", 30)
    assert [path.suffix for path in cache_folder.iterdir()] == [".npz"]  # and nothing unfinished is left
    monkeypatch.setattr(synthetic, "draw_digits", lambda *_: pytest.fail("drawn again"))
    again = synthetic_digits("valid", 30)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "flip", "other"])
def test_a_damaged_cache_file_is_drawn_again(cache_folder, damage):
    first = synthetic_digits("valid", 30)
    (path,) = cache_folder.iterdir()
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 0x55
    if damage == "other":
        np.savez(path, images=np.zeros((3, 28, 28)), labels=np.zeros(3))
    else:
        broken = {"truncate": sound[:5000], "garbage": b"\x93NUMPY" + bytes(99), "empty": b"", "flip": bytes(flipped)}
        path.write_bytes(broken[damage])
    np.testing.assert_array_equal(synthetic_digits("valid", 30)[0], first[0])
    assert path.read_bytes() == sound


def test_a_folder_that_cannot_be_written_only_means_that_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path / "file" / "below"))
    images, labels = synthetic_digits("valid", 10)
    assert images.shape == (10, 28, 28)
    assert labels.shape == (10,)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_synthetic_source_has_three_pools_without_a_common_digit(monkeypatch):
    monkeypatch.setattr(digits_module, "POOLS", {"train": 60, "valid": 20, "test": 40})
    source = digit_source("synthetic")
    assert source.sizes == {"train": 60, "valid": 20, "test": 40}
    pools = {split: source.images(split) for split in source.sizes}
    assert {split: len(pool) for split, pool in pools.items()} == source.sizes
    assert len({image.tobytes() for pool in pools.values() for image in pool}) == 120
    assert len(source.labels("train")) == 60
    assert "synthetic" in source.source["digits"]
    with pytest.raises(ValueError, match="read-only"):
        source.images("train")[0] = 0


def write_digit_folder(folder, train, test, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for stem, count in (("train", train), ("t10k", test)):
        images, labels = rng.integers(256, size=(count, 28, 28), dtype=np.uint8), rng.integers(10, size=count)
        for name, code, values in ((f"{stem}-images-idx3-ubyte", 3, images), (f"{stem}-labels-idx1-ubyte", 1, labels)):
            header = bytes([0, 0, 8, code]) + np.array(values.shape, ">u4").tobytes()
            (folder / name).write_bytes(header + values.astype(np.uint8).tobytes())
    return folder


def test_a_folder_is_split_without_a_common_digit(tmp_path):
    source = digit_source(str(write_digit_folder(tmp_path / "mine", 40, 15)))
    assert source.sizes == {"train": 36, "valid": 4, "test": 15}
    assert {split: len(source.labels(split)) for split in source.sizes} == source.sizes
    everything = [image.tobytes() for split in source.sizes for image in source.images(split)]
    assert len(set(everything)) == 55
    assert source.source["digits"] == str(tmp_path / "mine")


def test_the_source_names_the_content(tmp_path):
    one = digit_source(str(write_digit_folder(tmp_path / "a", 4, 2))).source["sha256"]
    same = digit_source(str(write_digit_folder(tmp_path / "b", 4, 2))).source["sha256"]
    other = digit_source(str(write_digit_folder(tmp_path / "c", 4, 2, seed=1))).source["sha256"]
    assert one == same != other


def test_mnist_comes_from_the_cache_and_validates_on_its_last_5000(cache_folder):
    write_digit_folder(cache_folder / "mnist", 55_000, 10)
    source = digit_source("mnist")
    assert source.sizes == {"train": 50_000, "valid": 5000, "test": 10}
    assert source.source["digits"] == "mnist"


def test_one_training_image_cannot_be_split(tmp_path):
    with pytest.raises(ValueError, match="1 training image; expected at least 2"):
        digit_source(str(write_digit_folder(tmp_path / "one", 1, 1)))


@pytest.mark.parametrize(
    ("name", "near"), [("minst", "mnist"), ("fashion-mnist", "fashion_mnist"), ("Synthetic", None)]
)
def test_an_unknown_name_is_refused(name, near):
    hint = f"did you mean {near}" if near else "expected synthetic, mnist, fashion_mnist, or a folder"
    with pytest.raises(ValueError, match=hint):
        digit_source(name)


def test_asking_for_more_digits_than_there_are_is_refused(tmp_path):
    source = digit_source(str(write_digit_folder(tmp_path / "mine", 40, 15)))
    source.check("test", "dataset.test_size", 15)
    with pytest.raises(ValueError, match=r"dataset.test_size=16: expected 1..15"):
        source.check("test", "dataset.test_size", 16)
