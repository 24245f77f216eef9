"""`sigexp apply RUN FILE... -o OUT`: a learned model on a user's own files.

A file that cannot be used costs a line and the exit code; the others are still processed. Results are written whole or
not at all, and never over an input.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigexp.usage import TRUST, Parser, WrongCommand

if TYPE_CHECKING:
    from sigexp.converting import Converter, Done

DESCRIPTION = """\
Put files through the best model of a run: pictures (PNG, JPEG, TIFF, BMP, WebP; 8 or 16 bits, grey or RGB), arrays
(.npy: [H, W], [H, W, C], or [T], [C, T] for models of sequences), sounds (.wav), and folders of them. Pictures may be
of any size: large ones are computed in tiles, with the same result.

Pictures become PNG files of the same depth, transparency unchanged; arrays become arrays, sounds sounds.
A model of one channel filters every channel alike. Models that tell classes print a table and need no OUT."""
EPILOG = """\
Bayer models take the raw picture, layout BGGR, in one channel, or in three with zeros where a colour was not measured.
With --simulate they take photographs: the mosaic is made from them, and a table tells how near the model and the
classical methods come (PSNR and SSIM as scikit-image computes them, 4 border pixels cut).

  sigexp apply outputs/bayer/deep/RUN raw.png -o developed
  sigexp apply outputs/bayer/deep/RUN photographs/ --simulate -o developed

exit codes: 0 done; 2 a file cannot be used, or the command is wrong; 4 disk or permission"""


def command(words: list[str]) -> int:
    """Parse the verb's words and carry it out. Help and wrong words are answered without importing torch."""
    parser = Parser(prog="sigexp apply", description=DESCRIPTION, epilog=EPILOG, verbatim=True)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files and folders")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="the folder to write to; it is made")
    parser.add_argument("--simulate", action="store_true", help="Bayer models: make mosaics from RGB photographs")
    parser.add_argument("--npy", action="store_true", help="write arrays of float32: nothing is cut or rounded")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in OUT (never an input)")
    parser.add_argument("--max-megapixels", type=float, default=150, metavar="N", help="largest picture taken (150)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)
    given = parser.parse_intermixed_args(words)
    if not given.max_megapixels > 0:
        raise WrongCommand(f"--max-megapixels {given.max_megapixels}: expected a positive number")
    if not given.run.is_dir():
        raise WrongCommand(f"{given.run}: no such folder; give the folder of a finished run")
    converter = prepare(given)
    if given.output is None and converter.predictor.kind != "class":
        raise WrongCommand("give the folder to write to: -o OUT")
    inputs, problems = gather(given.files, given.output)
    return Application(converter, given.output, given.overwrite, len(inputs)).run(inputs, problems)


def prepare(given: Any) -> "Converter":
    """The run's model, and how its results are wanted; settings of the whole process besides."""
    import warnings

    import PIL.Image

    from sigexp import cli, machine, predictor
    from sigexp.converting import Converter

    cli.prepare(given.trust)
    machine.tune_allocator()
    machine.configure_torch(None, True)
    PIL.Image.MAX_IMAGE_PIXELS = None  # our own limit is checked instead, before anything is decoded
    warnings.simplefilter("ignore")  # of decoders, about odd metadata
    ready = predictor.load(given.run, given.trust)
    ready.model.to(machine.pick_device(given.device))
    return Converter(ready, given.npy, given.simulate, int(given.max_megapixels * 1e6))


@dataclass(frozen=True)
class Input:
    """A file, and its place below OUT."""

    path: Path
    relative: Path


def gather(words: Sequence[Path], output: Path | None) -> tuple[list[Input], list[str]]:
    """All files that are named, or lie in named folders, and what is wrong with the other words.

    Of a folder, files with a known suffix are taken, hidden ones and what lies in OUT left out.
    """
    from sigexp.data.images import SUFFIXES

    known = {*SUFFIXES, ".npy", ".wav"}
    found: dict[Path, Input] = {}
    problems = []
    for word in words:
        if not word.is_dir():
            found.setdefault(word.resolve(), Input(word, Path(word.name)))
            continue
        inside = [path for path in sorted(word.rglob("*")) if path.suffix.lower() in known and path.is_file()]
        inside = [path for path in inside if not any(p.startswith(".") for p in path.relative_to(word).parts)]
        if output is not None and output.resolve() != word.resolve():
            inside = [path for path in inside if not path.resolve().is_relative_to(output.resolve())]
        for path in inside:
            found.setdefault(path.resolve(), Input(path, path.relative_to(word)))
        if not inside:
            problems.append(f"{word}: a folder without files to use ({', '.join(sorted(known))})")
    return list(found.values()), problems


@dataclass
class Application:
    """One call of the verb: what was written and what went wrong so far."""

    converter: "Converter"
    output: Path | None
    overwrite: bool
    count: int
    code: int = 0
    failed: int = 0
    given_out: set[Path] = field(default_factory=set)  # places of this call's results
    inputs: set[Path] = field(default_factory=set)

    def run(self, inputs: Sequence[Input], problems: Sequence[str]) -> int:
        """Process all files and return the exit code."""
        from rich.console import Console

        from sigexp.report.progress import Progress

        console = Console(highlight=False, soft_wrap=True)
        self.inputs = {one.path.resolve() for one in inputs}
        done: dict[str, Done] = {}
        with Progress(len(inputs)) as progress:
            for problem in problems:
                self.fail(progress, problem, 2)
            for one in inputs:
                result = self.one(one, progress)
                if result is not None:
                    done[str(one.path)] = result
                    progress.say(console, line_of(one.path, result))
        show_tables(console, done, str(self.converter.predictor))
        if self.failed:
            console.print(f"{len(done)} done, {self.failed} failed")
        return self.code

    def one(self, one: Input, progress: Any) -> "Done | None":
        """Process a file; None, and a line on standard error, where that cannot be done."""
        progress.begin(printable(str(one.path)))
        try:
            if not one.path.exists():
                raise ValueError("no such file")
            if not one.path.is_file():
                raise ValueError("not a file or folder")
            return self.converter.convert(one.path, lambda suffix: self.place(one, suffix), progress.advance)
        except Exception as error:  # whatever a file leads to must not keep the others from being processed
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            self.fail(progress, *complaint(one.path, error))
        return None

    def fail(self, progress: Any, message: str, code: int) -> None:
        self.failed += 1
        self.code = max(self.code, code)
        progress.complain(f"sigexp: {printable(message)}")

    def place(self, one: Input, suffix: str) -> Path:
        """Where a result goes: OUT, the input's place in its folder, and a number where two have the same name.

        Raises ValueError where something is there that is not to be replaced.
        """
        assert self.output is not None
        folder = self.output / one.relative.parent
        number, path = 1, folder / (one.relative.stem + suffix)
        while path in self.given_out:
            number += 1
            path = folder / f"{one.relative.stem}-{number}{suffix}"
        if path.resolve() in self.inputs:
            raise ValueError(f"the result would replace the input {path}; give another folder than {self.output}")
        if path.exists() and not self.overwrite:
            raise ValueError(f"{path} is there already; give --overwrite or another folder")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"-o {self.output}: not a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.given_out.add(path)
        return path


def complaint(path: Path, error: Exception) -> tuple[str, int]:
    """What is said of a file that could not be processed, in a line, and the exit code."""
    from sigexp.errors import DISK, explanation

    if isinstance(error, OSError):
        return f"{error.filename or path}: {error.strerror or error}", 4 if error.errno in DISK else 2
    code, message = explanation(error)
    said = message.splitlines()[0]
    return said if said.startswith(f"{path}:") else f"{path}: {said}", code


def printable(text: str) -> str:
    """A file's name without what a terminal would act on, or could not show."""
    return "".join(character if character.isprintable() else "?" for character in text)


def line_of(path: Path, done: "Done") -> str:
    where = f" -> {done.output}" if done.output else ""
    return printable(f"{path}{where}: {'; '.join(done.remarks)}")


def show_tables(console: Any, done: Mapping[str, "Done"], name: str) -> None:
    """The quality of every picture and their mean; the classes of every file."""
    from rich.markup import escape

    from sigexp import judging
    from sigexp.report.tables import class_table, set_table

    judged = {path: one.quality for path, one in done.items() if any(one.quality.values())}
    titles: Iterator[tuple[str, Mapping[str, Mapping[str, float]]]] = iter(judged.items())
    for path, quality in titles:
        console.print(set_table(escape(printable(path)), quality, list(judging.METRICS)))
    if len(judged) > 1:
        average = judging.mean(list(judged.values()))
        console.print(set_table(f"mean of {len(judged)} photographs", average, list(judging.METRICS)))
    if judged:
        console.print(f"4 border pixels cut, values clipped to 0..1 and not rounded; {name} and the classical methods")
    classes = {escape(printable(path)): one.classes for path, one in done.items() if one.classes}
    if classes:
        console.print(class_table(classes))
