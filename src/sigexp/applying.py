"""`sigexp apply RUN FILE... -o OUT`: a learned model on a user's own files.

A file that cannot be used costs a line and the exit code; the others are still processed. Results are written whole or
not at all, and never over an input.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigexp.gathering import Input, gather, there_already, which_is_which
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
With --simulate they take photographs: the mosaic is made from them, and a table tells how near the models and the
classical methods come (PSNR, CPSNR and SSIM as scikit-image computes them, 4 border pixels cut). Without -o nothing
but the table is made; with it also OUT/NAME-compared.png, a part of the middle: mosaic, models, the best classical
method, original. Several runs are judged side by side; their results go to OUT/MODEL.

  sigexp apply outputs/bayer/deep/RUN raw.png -o developed
  sigexp apply outputs/bayer/linear/RUN outputs/bayer/deep/RUN photographs/ --simulate
  sigexp apply outputs/bayer/*/* photographs/ --simulate --csv > photographs.csv

exit codes: 0 done; 2 a file cannot be used, or the command is wrong; 4 disk or permission"""


def command(words: list[str]) -> int:
    """Parse the verb's words and carry it out. Help and wrong words are answered without importing torch."""
    parser = Parser(prog="sigexp apply", description=DESCRIPTION, epilog=EPILOG, verbatim=True)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run; several are compared")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files and folders")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="the folder to write to; it is made")
    parser.add_argument("--simulate", action="store_true", help="Bayer models: make mosaics from RGB photographs")
    parser.add_argument("--csv", action="store_true", help="with --simulate: a line a picture and predictor, as CSV")
    parser.add_argument("--npy", action="store_true", help="write arrays of float32: nothing is cut or rounded")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in OUT (never an input)")
    parser.add_argument("--max-megapixels", type=float, default=150, metavar="N", help="largest picture taken (150)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)
    given = parser.parse_intermixed_args(words)
    if not given.max_megapixels > 0:
        raise WrongCommand(f"--max-megapixels {given.max_megapixels}: expected a positive number")
    if given.csv and not given.simulate:
        raise WrongCommand("--csv tells how near models come to photographs; it needs --simulate")
    runs, files = sorted_out(given.run, given.files)
    inputs, problems = gather(files, given.output)
    if given.output is not None and not given.overwrite and len(runs) == 1:
        known = there_already(inputs, runs[0], given.output, given.npy)
        inputs, problems = [one for one in inputs if one not in known], [*problems, *known.values()]
    if problems and not inputs:
        raise WrongCommand("\n".join(map(printable, problems)))
    converters = prepare(given, runs)
    if given.output is None and not given.simulate and any(c.predictor.kind != "class" for c in converters):
        raise WrongCommand("give the folder to write to: -o OUT")
    return Application(converters, given.output, given.overwrite, given.csv).run(inputs, problems)


def sorted_out(first: Path, words: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The runs that lead the words, and the files behind them. Raises WrongCommand where either is missing."""
    from sigexp.track.find import wrong_folder

    if not first.is_dir():
        raise WrongCommand(wrong_folder(first))
    if not is_run(first) and not any((first / name).is_file() for name in ("config.yaml", "result.json")):
        raise WrongCommand(wrong_folder(first, several=True))
    count = next((i for i, word in enumerate(words) if not is_run(word)), len(words))
    if count == len(words):
        raise WrongCommand("only runs are named; give FILE... behind them: pictures, arrays, sounds or folders of them")
    return [first, *words[:count]], list(words[count:])


def is_run(folder: Path) -> bool:
    return (folder / "model.json").is_file()


def prepare(given: Any, runs: Sequence[Path]) -> "list[Converter]":
    """The runs' models, and how their results are wanted; settings of the whole process besides."""
    import warnings

    import PIL.Image

    from sigexp import cli, machine, predictor
    from sigexp.converting import Converter

    cli.prepare(given.trust)
    machine.tune_allocator()
    machine.configure_torch(None, True)
    PIL.Image.MAX_IMAGE_PIXELS = None  # our own limit is checked instead, before anything is decoded
    warnings.simplefilter("ignore")  # of decoders, about odd metadata
    device = machine.pick_device(given.device)
    ready = predictor.load_several(runs, given.trust)
    for one in ready.values():
        one.model.to(device)
    return [
        Converter(
            one,
            label,
            as_array=given.npy,
            simulate=given.simulate,
            most_pixels=int(given.max_megapixels * 1e6),
            writes=given.output is not None,
            classical=number == 0,
            folder=one.folder,
        )
        for number, (label, one) in enumerate(ready.items())
    ]


@dataclass
class Application:
    """One call of the verb: what was written and what went wrong so far."""

    converters: "Sequence[Converter]"
    output: Path | None
    overwrite: bool
    as_csv: bool = False
    code: int = 0
    failed: int = 0
    given_out: set[Path] = field(default_factory=set)  # places of this call's results
    inputs: set[Path] = field(default_factory=set)

    def run(self, inputs: Sequence[Input], problems: Sequence[str]) -> int:
        """Process all files and return the exit code."""
        from rich.console import Console

        from sigexp import judging
        from sigexp.report.progress import Progress
        from sigexp.report.terminal import PIPED_WIDTH

        console = Console(highlight=False, soft_wrap=True, stderr=self.as_csv)
        if not console.is_terminal:
            console = Console(highlight=False, width=PIPED_WIDTH, no_color=True, stderr=self.as_csv)
        self.inputs = {one.path.resolve() for one in inputs}
        if len(self.converters) > 1:
            for line in which_is_which({one.label: one.folder for one in self.converters}):
                console.print(line, markup=False)
        done: dict[str, list[Done]] = {}
        with Progress(len(inputs)) as progress:
            for problem in problems:
                self.fail(progress, problem, 2)
            for one in inputs:
                results = self.one(one, progress)
                if results:
                    done[str(one.path)] = results
                    for result in results if self.output else results[:1]:
                        progress.say(console, line_of(one.path, result))
        judged = {printable(path): merged(results) for path, results in done.items()}
        judged = {path: quality for path, quality in judged.items() if any(quality.values())}
        if self.as_csv:
            print(judging.as_csv(judged), end="")
        elif judged:
            judging.show(judged, console)
        self.show_classes(console, done)
        if self.failed:
            console.print(f"{len(done)} done, {self.failed} failed")
        return self.code

    def one(self, one: Input, progress: Any) -> "list[Done]":
        """Put a file through every model; none, and a line on standard error, where that cannot be done.

        So the means of all models are over the same pictures.
        """
        progress.begin(printable(str(one.path)))
        try:
            if not one.path.exists():
                raise ValueError("no such file")
            if not one.path.is_file():
                raise ValueError("not a file or folder")
            simulated = self.output is not None and self.converters[0].simulate
            compared = self.place(one, "-compared.png") if simulated else None
            results = [self.convert(number, one, progress) for number in range(len(self.converters))]
            if compared:
                self.draw_compared(compared, results)
            return [replace(result, crops=None) for result in results]  # they take memory
        except Exception as error:  # whatever a file leads to must not keep the others from being processed
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            self.fail(progress, *complaint(one.path, error))
        return []

    def draw_compared(self, path: Path, results: "Sequence[Done]") -> None:
        """NAME-compared.png: mosaic, models, the best classical method and the original."""
        from sigexp.report.demosaiced import side_by_side
        from sigexp.track import folder as folders

        crops = [result.crops for result in results if result.crops]
        outputs = {converter.label: found for converter, (_, found) in zip(self.converters, crops, strict=True)}
        folders.write(path, side_by_side(crops[0][0], outputs, merged(results)))

    def convert(self, number: int, one: Input, progress: Any) -> "Done":
        converter, count = self.converters[number], len(self.converters)
        below = converter.label if count > 1 else ""

        def advance(tiles: int, of: int) -> None:
            progress.advance(number * of + tiles, count * of)

        return converter.convert(one.path, lambda suffix: self.place(one, suffix, below), advance)

    def show_classes(self, console: Any, done: "Mapping[str, Sequence[Done]]") -> None:
        """The classes of every file, a table for each model."""
        from sigexp.report.tables import class_table
        from sigexp.report.terminal import print_table

        for number, converter in enumerate(self.converters):
            found = {printable(path): results[number].classes for path, results in done.items()}
            found = {path: classes for path, classes in found.items() if classes}
            if found and len(self.converters) > 1:
                console.print(f"{converter.label}:")
            if found:
                print_table(console, class_table(found))

    def fail(self, progress: Any, message: str, code: int) -> None:
        self.failed += 1
        self.code = max(self.code, code)
        progress.complain(f"sigexp: {printable(message)}")

    def place(self, one: Input, suffix: str, below: str = "") -> Path:
        """Where a result goes: OUT, the model of several, the input's place in its folder, and a number where two have
        the same name.

        Raises ValueError where something is there that is not to be replaced.
        """
        assert self.output is not None
        folder = self.output / below / one.relative.parent
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


def merged(results: "Sequence[Done]") -> dict[str, dict[str, float]]:
    """The quality of all models of a picture and of the classical methods: predictor -> metric -> value."""
    return {name: values for result in results for name, values in result.quality.items()}
