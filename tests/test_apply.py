"""`sigexp apply`: files of all kinds through a model, the broken ones told and the others still done."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
import scipy.io.wavfile
import skimage.metrics
import torch
import yaml
from skimage import data

from sigexp import saved, tiling
from sigexp.cli import main
from sigexp.config import build
from sigexp.predictor import MOSAICS
from sigexp.signal.bayer import mosaic
from sigexp.signal.demosaic import METHODS, demosaic

MODELS = "sigexp.models."


def run_folder(folder, target, shapes, *, kind="image", dataset="none", labels=(), **fields):
    """A run's folder as far as `apply` looks at it, and its model, with weights that do something."""
    node = {"_target_": MODELS + target, **fields}
    torch.manual_seed(0)
    model = build(node, *shapes, what="model")
    described = {
        "experiment": "test", "name": target.rpartition(".")[2], "kind": kind, "labels": list(labels),
        "input_shape": shapes[0], "target_shape": shapes[1], "model": node,
    }  # fmt: skip
    folder.mkdir(parents=True)
    saved.save_model(folder, model, described)
    (folder / "config.yaml").write_text(yaml.safe_dump({"dataset": {"_target_": dataset}}))
    return str(folder), model.eval()


@pytest.fixture
def identity(workdir):
    """One channel, output = input: what comes out tells what was done to the file."""
    folder, model = run_folder(workdir / "run", "filters.linear", ((1, 8, 8), (1, 8, 8)), kernel_size=1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    described = json.loads((workdir / "run/model.json").read_text())
    saved.save_model(workdir / "run", model, described)
    return folder


@pytest.fixture
def bayer(workdir):
    shapes = ((3, 16, 16), (3, 16, 16))
    return run_folder(workdir / "run", "demosaic.polyphase", shapes, dataset=MOSAICS, channels=4, layers=3)


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_depth_channels_and_transparency_are_kept(identity, workdir, dtype, channels, suffix):
    pixels = noise((13, 17, channels), dtype)
    cv2.imwrite(f"in{suffix}", pixels)
    assert main(["apply", identity, f"in{suffix}", "-o", "out"]) == 0
    found = read("out/in.png")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)


def test_transparency_is_not_filtered(workdir):
    folder, _ = run_folder(workdir / "run", "filters.linear", ((1, 8, 8), (1, 8, 8)), kernel_size=3)
    pixels = noise((13, 17, 4))
    cv2.imwrite("in.png", pixels)
    PIL.Image.fromarray(pixels[..., :2]).save("grey.png")
    assert main(["apply", folder, "in.png", "grey.png", "-o", "out"]) == 0
    assert not np.array_equal(read("out/in.png")[..., 0], pixels[..., 0])
    np.testing.assert_array_equal(read("out/in.png")[..., 3], pixels[..., 3])
    found = PIL.Image.open("out/grey.png")
    assert found.mode == "LA"
    np.testing.assert_array_equal(np.asarray(found)[..., 1], pixels[..., 1])


def test_colour_profiles_are_carried(identity, workdir):
    picture = PIL.Image.fromarray(noise((9, 9, 3)))
    picture.save("in.png", icc_profile=b"a profile")
    assert main(["apply", identity, "in.png", "-o", "out"]) == 0
    assert PIL.Image.open("out/in.png").info["icc_profile"] == b"a profile"


def test_a_mosaic_of_any_size_in_tiles_is_what_the_model_gives_at_once(bayer, workdir, monkeypatch, capsys):
    folder, model = bayer
    raw = noise((151, 98), np.uint16)
    three = mosaic(np.repeat(raw[None], 3, 0))
    cv2.imwrite("raw.png", raw)
    cv2.imwrite("three.png", three[::-1].transpose(1, 2, 0))
    cv2.imwrite("thrice.png", np.repeat(raw[..., None], 3, 2))
    with torch.no_grad():
        expected = model(torch.from_numpy(three / np.float32(65535))[None])[0].clamp(0, 1).permute(1, 2, 0).numpy()
    monkeypatch.setattr(tiling, "WORKING_BYTES", 10_000)
    monkeypatch.setattr(tiling, "SIDES", (32, 32))
    calls = []
    crop = tiling.Tile.crop
    monkeypatch.setattr(tiling.Tile, "crop", lambda tile, outputs: calls.append(1) or crop(tile, outputs))
    assert main(["apply", folder, "raw.png", "three.png", "thrice.png", "-o", "out"]) == 0
    assert len(calls) > 30
    for name in ("raw", "three", "thrice"):
        found = read(f"out/{name}.png")[..., ::-1]
        assert found.dtype == np.uint16
        np.testing.assert_allclose(found / 65535, expected, atol=1.8e-5)  # a unit of 16 bits, and 1e-5 / 4
    assert "98x151, 16 bit grey" in capsys.readouterr().out


def test_simulated_mosaics_are_judged_as_scikit_image_does(bayer, workdir, monkeypatch, capsys):
    from sigexp.converting import Converter

    folder, model = bayer
    photograph = data.chelsea()[50:141, 60:160]
    cv2.imwrite("cat.png", photograph[..., ::-1])
    seen = {}
    picture = Converter.picture
    monkeypatch.setattr(Converter, "picture", lambda *a, **k: seen.setdefault("done", picture(*a, **k)))
    monkeypatch.setattr(tiling, "WORKING_BYTES", 10_000)
    monkeypatch.setattr(tiling, "SIDES", (48, 48))
    assert main(["apply", folder, "cat.png", "--simulate", "-o", "out"]) == 0
    quality = seen["done"].quality
    original = torch.from_numpy(photograph.transpose(2, 0, 1).copy()).float()[None] / 255
    with torch.no_grad():
        outputs = {"polyphase (learned)": model(mosaic(original))}
    outputs.update({name: demosaic(mosaic(original), name) for name in METHODS})
    assert list(quality) == list(outputs)
    target = original[0].permute(1, 2, 0).numpy()[4:-4, 4:-4]
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1, "channel_axis": 2}
    for name, output in outputs.items():
        found = output[0].clamp(0, 1).permute(1, 2, 0).numpy()[4:-4, 4:-4]
        psnr = [skimage.metrics.peak_signal_noise_ratio(target[..., c], found[..., c], data_range=1) for c in range(3)]
        pooled = skimage.metrics.peak_signal_noise_ratio(target, found, data_range=1)
        ssim = skimage.metrics.structural_similarity(target.astype(float), found.astype(float), **settings)
        expected = dict(zip(("cpsnr", "psnr_r", "psnr_g", "psnr_b", "ssim"), (pooled, *psnr, ssim), strict=True))
        assert quality[name] == pytest.approx(expected, abs=1e-4), name
    shown = " ".join(capsys.readouterr().out.split())
    assert all(word in shown for word in ("cpsnr", "menon", "polyphase (learned)", "4 border pixels"))


@pytest.fixture
def two(workdir):
    """Two models of one name, and two photographs in a folder."""
    shapes = ((3, 16, 16), (3, 16, 16))
    folders = [f"runs/2026-01-01_00-00-00-{name}" for name in ("aaaa", "bbbb")]
    models = [
        run_folder(workdir / folder, "demosaic.polyphase", shapes, dataset=MOSAICS, channels=4, layers=layers)[1]
        for folder, layers in zip(folders, (2, 3), strict=True)
    ]
    (workdir / "set").mkdir()
    for name, photograph in (("a", data.chelsea()[50:110, 60:121]), ("b", data.coffee()[100:150, 60:130])):
        cv2.imwrite(f"set/{name}.png", photograph[..., ::-1])
    return folders, models


def test_models_and_classical_methods_are_judged_side_by_side(two, workdir, capsys):
    folders, models = two
    assert main(["apply", *folders, "set", "--simulate", "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    predictors = ["polyphase-aaaa (learned)", *METHODS, "polyphase-bbbb (learned)"]
    assert sorted((line["picture"], line["predictor"]) for line in lines) == sorted(
        (picture, name) for picture in ("set/a.png", "set/b.png", "mean") for name in predictors
    )
    found = {(line["picture"], line["predictor"]): line for line in lines}
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1, "channel_axis": 2}
    for name, model in zip(("polyphase-aaaa (learned)", "polyphase-bbbb (learned)"), models, strict=True):
        expected = []
        for picture in ("set/a.png", "set/b.png"):
            original = torch.from_numpy(read(picture)[..., ::-1].transpose(2, 0, 1) / np.float32(255))
            with torch.no_grad():
                output = model(mosaic(original)[None])[0].clamp(0, 1)
            x, y = (part.permute(1, 2, 0).double().numpy()[4:-4, 4:-4] for part in (original, output))
            psnr = skimage.metrics.peak_signal_noise_ratio(x, y, data_range=1)
            expected.append((psnr, skimage.metrics.structural_similarity(x, y, **settings)))
            line = found[picture, name]
            assert (float(line["cpsnr"]), float(line["ssim"])) == pytest.approx(expected[-1], abs=1e-4)
        line = found["mean", name]
        assert (float(line["cpsnr"]), float(line["ssim"])) == pytest.approx(np.mean(expected, 0), abs=1e-4)
    assert {path.name for path in workdir.iterdir()} == {"runs", "set"}, "nothing but the table is made without -o"


def test_results_of_several_models_go_to_a_folder_each(two, workdir, capsys):
    folders, _ = two
    assert main(["apply", *folders, folders[0], "set", "--simulate", "-o", "out"]) == 0, "a repeated run counts once"
    results = sorted(p.relative_to(workdir / "out").as_posix() for p in (workdir / "out").rglob("*.png"))
    written = [f"polyphase-{run}/{name}.png" for run in ("aaaa", "bbbb") for name in "ab"]
    assert results == ["a-compared.png", "b-compared.png", *written]
    assert "mean of 2 photographs" in capsys.readouterr().out


def test_a_picture_that_one_model_cannot_take_counts_for_none(two, workdir, capsys, monkeypatch):
    from sigexp.predictor import Predictor

    folders, _ = two
    plan = Predictor.plan
    refuse = iter([False, True])  # the second model refuses the first picture

    def planned(self, *words, **settings):
        if next(refuse, False):
            raise ValueError("too large")
        return plan(self, *words, **settings)

    monkeypatch.setattr(Predictor, "plan", planned)
    assert main(["apply", *folders, "set", "--simulate", "--csv"]) == 2
    shown = capsys.readouterr()
    assert "set/a.png: too large" in shown.err
    assert {line.split(",")[0] for line in shown.out.splitlines()} == {"picture", "set/b.png", "mean"}


def test_names_of_models_are_no_paths(workdir):
    from pathlib import Path

    from sigexp.gathering import labels

    assert labels(["deep", "linear"], [Path("a"), Path("b")]) == ["deep", "linear"]
    assert labels(["../../x\x1b[31m", ".."], [Path("a"), Path("b")]) == ["_.._x_31m", "model"]
    assert labels(["x", "x", "x"], [Path("a"), Path("b"), Path("a")]) == ["x-a", "x-b", "x-a-3"]


def test_arrays(identity, workdir):
    arrays = {
        "flat": np.random.default_rng(0).normal(size=(9, 12)),
        "channels": np.random.default_rng(1).random((9, 12, 5), dtype=np.float32),
        "bytes": noise((9, 12, 3)),
        "mask": np.eye(9, dtype=bool),
    }
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    assert main(["apply", identity, *(f"{name}.npy" for name in arrays), "-o", "out"]) == 0
    for name, array in arrays.items():
        found = np.load(f"out/{name}.npy")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, array / (255 if name == "bytes" else 1), atol=1e-6)


def test_arrays_of_pictures_on_demand(identity, workdir):
    pixels = noise((9, 12, 3))
    PIL.Image.fromarray(pixels).save("in.png")
    assert main(["apply", identity, "in.png", "--npy", "-o", "out"]) == 0
    np.testing.assert_allclose(np.load("out/in.npy"), pixels / 255, atol=1e-6)


@pytest.fixture
def echo(workdir):
    """A sequence model that gives its input, one channel."""
    shapes = ((1, 64), (1, 64))
    folder, model = run_folder(workdir / "run", "filters.linear", shapes, kind="sequence", kernel_size=1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    saved.save_model(workdir / "run", model, json.loads((workdir / "run/model.json").read_text()))
    return folder


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(400,), (400, 2)])
def test_sounds(echo, workdir, dtype, shape):
    samples = noise(shape, dtype) if dtype != np.float32 else np.random.default_rng(0).random(shape, np.float32)
    scipy.io.wavfile.write("in.wav", 8000, samples)
    assert main(["apply", echo, "in.wav", "-o", "out"]) == 0
    rate, found = scipy.io.wavfile.read("out/in.wav")
    assert (rate, found.dtype) == (8000, dtype)
    np.testing.assert_array_equal(found, samples)


def test_sequences_as_arrays(echo, workdir):
    np.save("one.npy", np.arange(50.0))
    np.save("two.npy", np.arange(100).reshape(2, 50))
    assert main(["apply", echo, "one.npy", "two.npy", "-o", "out"]) == 0
    np.testing.assert_array_equal(np.load("out/one.npy"), np.arange(50))
    np.testing.assert_array_equal(np.load("out/two.npy"), np.arange(100).reshape(2, 50))


def test_classes_are_a_table(workdir, capsys):
    shapes = ((1, 32, 32), (2,))
    folder, _ = run_folder(workdir / "run", "shapes.fcn", shapes, kind="class", labels=("square", "circle"))
    PIL.Image.fromarray(noise((40, 50, 3))).save("a.png")
    PIL.Image.fromarray(noise((32, 32))).save("b.png")
    assert main(["apply", folder, "a.png", "b.png"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("P(square)", "P(circle)", "a.png", "as grey", "%"))


def test_folders_keep_their_tree_and_results_are_not_taken_for_inputs(identity, workdir, capsys):
    for name in ("photos/a.png", "photos/sub/a.png", "photos/a.jpg", "photos/.hidden.png", "photos/note.txt"):
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise((9, 9, 3))).save(path, "png")
    assert main(["apply", identity, "photos", "-o", "photos/out"]) == 0
    results = sorted(p.relative_to(workdir / "photos/out").as_posix() for p in (workdir / "photos/out").rglob("*.*"))
    assert results == ["a-2.png", "a.png", "sub/a.png"]
    assert main(["apply", identity, "photos", "-o", "photos/out"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["apply", identity, "photos", "-o", "photos/out", "--overwrite"]) == 0


def test_an_input_is_never_overwritten(identity, workdir, capsys):
    PIL.Image.fromarray(noise((9, 9, 3))).save("a.png")
    before = (workdir / "a.png").read_bytes()
    assert main(["apply", identity, "a.png", "-o", ".", "--overwrite"]) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert (workdir / "a.png").read_bytes() == before


def png_claiming(width, height):
    """A PNG file whose header promises a picture that is not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def saved_array(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def broken_files():
    whole = io.BytesIO()
    PIL.Image.fromarray(noise((60, 60, 3))).save(whole, "png")
    array = saved_array(np.ones((40, 40)))
    return {
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"these are words", "not a readable"),
        "cut.png": (whole.getvalue()[:2000], "broken or truncated"),
        "none.png": (png_claiming(0, 7), "not a readable"),
        "bomb.png": (png_claiming(60_000, 60_000), "at most 150 million"),
        "lost.png": (png_claiming(60, 60), "broken or truncated"),
        "empty.npy": (b"", "the file is empty"),
        "cut.npy": (array[:-100], "broken, truncated"),
        "words.npy": (b"words", "broken, truncated"),
        "nan.npy": (saved_array(np.full((9, 9), np.nan)), "81 of 81 values are NaN"),
        "none.npy": (saved_array(np.empty((0, 9))), "holds nothing"),
        "pickle.npy": (saved_array(np.array([print], object)), "broken, truncated or not"),
        "text.npy": (saved_array(np.array(["a"])), "real numbers"),
        "line.npy": (saved_array(np.ones(9)), "[H, W]"),
        "whole.npy": (saved_array(np.ones((9, 9), int)), "uint8"),
        "sound.wav": (b"RIFF", "takes pictures"),
        "note.txt": (b"words", "another kind"),
    }


def test_broken_files_cost_a_line_each_and_the_others_are_done(identity, workdir, capsys):
    broken = broken_files()
    for name, (content, _) in broken.items():
        (workdir / name).write_bytes(content)
    PIL.Image.fromarray(noise((9, 9, 3))).save("good.png")
    PIL.Image.fromarray(noise((9, 9, 3))).save("mislabelled.jpg", "png")
    os.mkfifo("pipe.png")
    words = [*broken, "missing.png", "pipe.png", "good.png", "mislabelled.jpg"]
    assert main(["apply", identity, *words, "-o", "out"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(broken) + 2
    for name, (_, reason) in broken.items():
        assert any(line.startswith(f"sigexp: {name}: ") and reason in line for line in lines), (name, lines)
    assert sorted(p.name for p in (workdir / "out").iterdir()) == ["good.png", "mislabelled.png"]


def test_broken_sounds(echo, workdir, capsys):
    scipy.io.wavfile.write("whole.wav", 8000, noise((400,), np.int16))
    whole = (workdir / "whole.wav").read_bytes()
    for name, content in (("cut", whole[:500]), ("header", whole[:20]), ("empty", b""), ("words", b"these are words")):
        (workdir / f"{name}.wav").write_bytes(content)
    scipy.io.wavfile.write("nan.wav", 8000, np.full(9, np.nan, np.float32))
    scipy.io.wavfile.write("none.wav", 8000, np.empty(0, np.int16))
    (workdir / "picture.png").write_bytes(png_claiming(3, 3))
    names = ["cut.wav", "header.wav", "empty.wav", "words.wav", "nan.wav", "none.wav", "picture.png"]
    assert main(["apply", echo, *names, "whole.wav", "-o", "out"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == names
    assert [p.name for p in (workdir / "out").iterdir()] == ["whole.wav"]


def test_a_large_picture_is_taken_on_demand_only(identity, workdir, capsys):
    PIL.Image.new("L", (2000, 600)).save("large.png")
    assert main(["apply", identity, "large.png", "-o", "out", "--max-megapixels", "1"]) == 2
    assert "at most 1 million" in capsys.readouterr().err
    assert main(["apply", identity, "large.png", "-o", "out", "--max-megapixels", "2"]) == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["colour.png"], "not a mosaic"),
        (["grey.png", "--simulate"], "no colours"),
    ],
)
def test_what_is_no_mosaic_is_refused(bayer, workdir, capsys, words, reason):
    PIL.Image.fromarray(noise((20, 20, 3))).save("colour.png")
    PIL.Image.fromarray(noise((20, 20))).save("grey.png")
    assert main(["apply", bayer[0], *words, "-o", "out"]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere", "a.png", "-o", "out"], "no such folder"),
        (["run", "a.png"], "-o OUT"),
        (["run", "-o", "out"], "FILE"),
        (["run", "run", "-o", "out"], "give FILE"),
        ([".", "a.png", "-o", "out"], "a folder with a run in it, not a run; give run"),
        (["run", "a.png", "-o", "out", "--csv"], "needs --simulate"),
        (["run", "a.png", "-o", "out", "--max-megapixels", "0"], "positive"),
        (["run", "a.png", "-o", "a.png"], "not a folder"),
        (["run", "a.png", "-o", "out", "--simulate"], "Bayer"),
        (["empty", "a.png", "-o", "out"], "empty: not the folder of a run (no result.json), and none is in it"),
        (["run", "empty", "-o", "out"], "without files to use"),
    ],
)
def test_wrong_commands(identity, workdir, capsys, words, reason):
    PIL.Image.fromarray(noise((9, 9))).save("a.png")
    (workdir / "empty").mkdir()
    (workdir / "run/result.json").write_text("{}")
    assert main(["apply", *words]) == 2
    assert reason in capsys.readouterr().err


def test_what_is_there_already_is_refused_before_anything_is_loaded(identity, workdir, capsys, monkeypatch):
    PIL.Image.fromarray(noise((9, 9))).save("a.png")
    PIL.Image.fromarray(noise((9, 9))).save("b.png")
    (workdir / "out").mkdir()
    (workdir / "out/a.png").write_bytes(b"earlier")
    with monkeypatch.context() as patched:
        patched.setattr("sigexp.applying.prepare", lambda *_: pytest.fail("loaded"))
        assert main(["apply", identity, "a.png", "-o", "out"]) == 2
    assert "out/a.png is there already; give --overwrite" in capsys.readouterr().err
    assert main(["apply", identity, "a.png", "b.png", "-o", "out"]) == 2
    assert (workdir / "out/a.png").read_bytes() == b"earlier"
    assert read("out/b.png").shape == (9, 9), "the others are still done"


def test_simulated_mosaics_are_shown_side_by_side(two, workdir, capsys):
    folders, _ = two
    (workdir / folders[0] / "result.json").write_text(json.dumps(
        {"experiment": "test", "model": {"name": "x"}, "best": {"test": {"mse": 1}}, "seeds": {"seed": 7}, "samples": 5}
    ))  # fmt: skip
    assert main(["apply", *folders, "set", "--simulate", "-o", "out"]) == 0
    shown = capsys.readouterr().out
    assert f"polyphase-aaaa  x, seed 7, 5 samples: {folders[0]}" in shown
    assert not set(shown) & set("━┃│┏"), "piped tables have no lines"
    original = read("set/a.png")
    drawn = read("out/a-compared.png")[38:]  # below the titles
    width = original.shape[1]
    columns = [drawn[::3, i * (3 * width + 4) :: 3][:, :width] for i in range(5)]
    np.testing.assert_array_equal(columns[4], original)
    np.testing.assert_array_equal(
        columns[0], mosaic(original[..., ::-1].transpose(2, 0, 1)).transpose(1, 2, 0)[..., ::-1]
    )
    for column, folder in zip(columns[1:3], folders, strict=True):
        np.testing.assert_array_equal(column, read(f"out/polyphase-{folder[-4:]}/a.png"))


def test_a_full_disk_is_exit_code_4_and_leaves_nothing(identity, workdir, capsys, monkeypatch):
    PIL.Image.fromarray(noise((9, 9))).save("a.png")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sigexp.track.folder.os.fsync", refuse)
    assert main(["apply", identity, "a.png", "-o", "out"]) == 4
    assert "No space left" in capsys.readouterr().err
    assert not list((workdir / "out").iterdir())


def test_names_cannot_drive_the_terminal(identity, workdir, capsys):
    (workdir / "\x1b[31mred[bold].png").write_bytes(b"")
    assert main(["apply", identity, "\x1b[31mred[bold].png", "-o", "out"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "red[bold].png" in shown


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom sigexp.cli import main\n"
        "try: main(['apply', '--help'])\nexcept SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'hydra', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--simulate" in done.stdout
