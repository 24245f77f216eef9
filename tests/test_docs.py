"""Every block of README.md and docs/*.md, run as a reader would: page by page, each in a folder of its own.

How it is made quick: runs get the settings of `SMALL` (and of `SMALL_OF` their experiment) behind their own; of swept
seeds and sizes the first value is taken; pictures of runs are drawn on the pages of `DRAWN` alone; `reproduce` and
`demonstrate` of packaged experiments are listed instead of run; a run that an earlier page made is copied. Lines that
are not run stand in `NOT_RUN`, with the reason. The reader's own pictures (photo.jpg, raw.png, my_pictures/) are made
by the test.
"""

import contextlib
import glob
import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import PIL.Image
import pytest
import runs
import yaml
from skimage import data

import sigexp
from sigexp import api, experiment
from sigexp.cli import main
from sigexp.signal.bayer import mosaic

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"^```([a-z]*)[ \t]*(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # language, file, text
LINK = re.compile(r"\]\(([^)#:]+)\)")

SMALL = [
    "dataset.size=40", "search.max_samples=40", "search.members=2", "search.survivors=1", "search.initial_samples=10",
    "search.round_samples=10", "search.valid_samples=10", "trainer.batch_size=5", "trainer.threads=1",
]  # fmt: skip
SMALL_OF = {
    "bayer": ["dataset.patch_size=20", "dataset.scales=[1]", "dataset.images=my_pictures"],
    "color": ["dataset.patch_size=20", "dataset.images=my_pictures"],
    "deblur": ["dataset.test_size=4", "footprint=5"],
    "gaussian": ["dataset.test_size=4", "dataset.image_size=24", "footprint=5"],
    "noisy_ramps": ["dataset.test_size=4"],
}
NOT_RUN = {
    "make demo": "installs packages; CI runs it",
    ". .venv/bin/activate": "the shell's own",
    "python3 -m venv": "makes a virtual environment",
    "pip install": "installs packages",
    "sigexp board": "serves until it is interrupted",
    **dict.fromkeys(
        ("sigexp rerun RUN", "sigexp replay RUN", "sigexp inspect RUN"), "RUN is any run; tests/test_verbs.py runs them"
    ),
}
LISTED = ("sigexp reproduce", "sigexp demonstrate")  # take minutes to hours: `--list` checks their words
NEEDED = {"claims.md": "dataset.md"}  # pages that go on with another one's files
DRAWN = ("python.md", "results.md")
FILES = (
    "report.html", "result.json", "rounds.jsonl", "config.yaml", "composed.yaml", "examples.png", "kernels.png",
    "response.png", "cases.json", "model.safetensors", "model.json", "events.out.tfevents.*", "run.log",
)  # fmt: skip
PROMISED = {
    "README.md": "developed/photo.png developed/raw.png bayer.html outputs/bayer/*/*/report.html preview-fill.png",
    "claims.md": "outputs/claims/claims.json",
    "dataset.md": "preview-noisy_ramps.png outputs/noisy_ramps/linear/*/report.html outputs/noisy_ramps/deep/*",
    "model.md": "outputs/deblur/residual/*/model.safetensors",
    "pictures.md": "developed/photo.png developed/raw.png my_pictures.csv outputs/color/conv1x1/*",
    "python.md": "outputs/bayer/deep/*/result.json",
    "results.md": " ".join(f"outputs/gaussian/linear/*/{name}" for name in FILES),
    "sweeps.md": "sweep.html linear.csv outputs/sweeps/*/multirun.yaml outputs/sweeps/*/sweep.jsonl "
    "outputs/sweeps/*/report.html",
}


def blocks(page):
    """Language, file name ('' for a block that is run) and text of every fenced block."""
    return [match.groups() for match in BLOCK.finditer(PAGES[page].read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def made():
    """Words of a run -> the folders of runs and sweeps that they made, on whatever page came first."""
    return {}


@pytest.fixture
def reader(workdir, monkeypatch):
    """A folder with pictures of the reader's own; modules that pages write are forgotten afterwards."""
    photograph = data.chelsea()
    (workdir / "my_pictures").mkdir()
    for number in range(5):
        part = photograph[20 * number : 20 * number + 56, 60 : 60 + 64]
        PIL.Image.fromarray(part).save(workdir / f"my_pictures/{number}.png")
    PIL.Image.fromarray(photograph[100:160, 100:170]).save(workdir / "photo.jpg")
    raw = mosaic(photograph[100:160, 100:170].transpose(2, 0, 1)).sum(0).astype("uint8")
    PIL.Image.fromarray(raw).save(workdir / "raw.png")
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    run = api.run
    monkeypatch.setattr(
        api, "run", lambda name, overrides=(), **s: run(name, overrides=[*overrides, *small(name)], **s)
    )
    yield workdir
    for name in set(sys.modules) - known:
        if str(workdir) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def small(experiment, given=()):
    """The settings that reduce a run, but for those of its experiment that the page gives itself."""
    named = {word.partition("=")[0] for word in given}
    return [*SMALL, *(word for word in SMALL_OF[experiment] if word.partition("=")[0] not in named)]


def run_line(line, made):
    """Run one line of a shell block in this process; the exit code must be 0."""
    words = shlex.split(line, comments=True)
    if not words or any(line.startswith(start) for start in NOT_RUN):
        return
    assert words[0] == "sigexp", f"{line}: neither sigexp nor in NOT_RUN"
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[1 : words.index(">") if target else None]
    words = [place for word in words for place in (sorted(glob.glob(word)) or [word])]
    if line.startswith(LISTED) and "-o" not in words:
        words = [words[0], "--list"] if words[0] == "demonstrate" else [*words, "--list"]
    chosen = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), None)
    trains = chosen is not None and words[0] != "preview"
    if trains:
        words = [re.sub(r"^((?:dataset\.)?(?:seed|size)=\d+),.*", r"\1", word) for word in words]
        words += small(chosen, words)
    if trains and tuple(words) in made:
        for source, place in made[tuple(words)]:
            shutil.copytree(source, place)
        return
    before = places()
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(words)
    assert code == 0, f"sigexp {shlex.join(words)}: exit code {code}"
    if target:
        Path(target).write_text(output.getvalue())
    if trains:
        made[tuple(words)] = [(Path(place).resolve(), place) for place in sorted(places() - before)]


def places():
    """The folders of runs and sweeps."""
    return {*glob.glob("outputs/[!s]*/*/*"), *glob.glob("outputs/s[!w]*/*/*"), *glob.glob("outputs/sweeps/*")}


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page, reader, made, monkeypatch):
    if page not in DRAWN:
        monkeypatch.setattr(experiment, "pictures", lambda *_: {"examples": runs.png})
        monkeypatch.setattr(experiment.response, "picture", lambda *_: runs.png())
    for _, name, text in blocks(NEEDED[page]) if page in NEEDED else ():
        if name:
            write(name, text)
    for language, name, text in blocks(page):
        if name:
            write(name, text)
        elif language == "sh":
            for line in text.splitlines():
                run_line(line, made)
        elif language == "python":
            exec(compile(text, f"{page}, block", "exec"), {"__name__": "__main__"})
        else:
            assert language == "text", f"{page}: a block of {language!r} that is neither run nor a file"
    for promise in PROMISED.get(page, "").split():
        assert glob.glob(promise), f"{page}: {promise}"


def test_no_command_hides_outside_a_fence():
    for page, path in PAGES.items():
        rest = BLOCK.sub("", path.read_text(encoding="utf-8"))
        assert not re.findall(r"^(?: {4}|\t)\S.*", rest, re.MULTILINE), page


def test_the_dataset_is_fifteen_lines():
    (text,) = (text for _, name, text in blocks("dataset.md") if name.endswith(".py"))
    assert len(text.splitlines()) <= 15


@pytest.mark.parametrize(
    ("page", "change", "words", "said"),
    [
        ("dataset.md", ("return clean + sigma", "return 1.0 * clean.astype(float) + sigma"), "", "float64"),
        ("dataset.md", ("    return Problem(", "    Problem("), "", "gave NoneType; expected a sigexp.problem.Problem"),
        ("dataset.md", ("import numpy", "import numpyy"), "", "No module named 'numpyy'"),
        ("dataset.md", ("def noisy_ramps", "def ramps"), "", "no attribute 'noisy_ramps'"),
        ("model.md", ("(nn.Module)", ""), "model=residual", "Residual; expected a torch.nn.Module"),
        ("model.md", ('padding="same"', "padding=0"), "model=residual", "model=residual cannot take inputs"),
        ("model.md", ("channels: int", "widths: int"), "model=residual", "model.channels: no such field"),
    ],
)
def test_mistakes_in_own_code_are_told(page, change, words, said, reader, capsys):
    for name in ("dataset.md", "model.md"):
        for _, file, text in blocks(name):
            if file:
                write(file, text.replace(*change) if name == page else text)
    assert main(["experiment=noisy_ramps", *words.split(), *small("noisy_ramps")]) == 2
    assert said in capsys.readouterr().err


def test_yaml_blocks_are_yaml():
    for page in PAGES:
        for language, _, text in blocks(page):
            if language == "yaml":
                assert isinstance(yaml.safe_load(text), dict), page


def test_links_lead_somewhere():
    for page, path in PAGES.items():
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_the_python_door_is_the_documented_one():
    assert sigexp.run is api.run
    assert sigexp.load is api.load
