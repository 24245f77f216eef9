"""sigexp from Python: `sigexp.run("bayer", model="deep")`, `sigexp.load(RUN)` and `sigexp.resume(RUN)` give a `Result`.

result = sigexp.run("bayer", model="polyphase", overrides=["search.max_samples=30000"])
result                            # in a notebook: the test table and the examples
result.show("kernels")            # one of the run's pictures
rgb = result.predict(raw)         # a numpy array or a tensor of any size, the same kind back
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sigexp import cli, experiment, predictor, resuming
from sigexp.fields import override_text
from sigexp.predictor import Array, Predictor
from sigexp.report.markup import Html, element, join, picture
from sigexp.report.tables import number, ranked
from sigexp.restoring import restored
from sigexp.track import documents, record
from sigexp.track.find import wrong_folder
from sigexp.track.record import finite, mapping

PICTURES = ("examples", "kernels", "response")


@dataclass(frozen=True)
class Picture:
    """A picture of a run, which notebooks show by itself; `save` writes it."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> Path:
        """Write the PNG file and return where it is."""
        path = Path(path)
        path.write_bytes(self.png)
        return path

    def __repr__(self) -> str:
        return f"Picture({len(self.png)} bytes of PNG; a notebook shows it, .save(path) writes it)"


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, what result.json says of it, and its best model with what that is for.

    `result.predict(array)` is the learned model on signals of your own, `result.model` the plain module, in evaluation
    mode, and `result(inputs)` the same called on a batch [B, C, ...].
    """

    folder: Path
    result: Mapping[str, Any]
    predictor: Predictor

    @property
    def model(self) -> nn.Module:
        """The best member, in evaluation mode on the CPU."""
        return self.predictor.model

    def __call__(self, inputs: Tensor) -> Tensor:
        """The model's outputs for a batch [B, C, H, W] or [B, C, T]."""
        return self.model(inputs)

    def predict(self, array: Array) -> Array:
        """What the model makes of a numpy array or a tensor, as one of the same kind, float32.

        Pictures are [H, W], [H, W, C] or a batch [B, H, W, C] in numpy, [H, W], [C, H, W] or [B, C, H, W] as tensors;
        sequences [T], [C, T] or [B, C, T]. They may be of any size where the model's form allows it: large ones are
        computed in overlapping tiles, with the same result. uint8 and uint16 pictures are divided by their largest
        value, floats taken as they are, in 0..1 or not far from it. Models of classes give probabilities [K] or [B, K].
        Bayer models take the raw picture [H, W], or [H, W, 3] with zeros where a colour was not measured.

        Raises ValueError for what the model cannot take, saying why.
        """
        return self.predictor.predict(array)

    def show(self, picture: str = "examples") -> Picture:
        """A picture of the run: 'examples' (inputs, outputs, targets, references), 'kernels' or 'response'.

        Raises ValueError where the run has no such picture.
        """
        if picture not in PICTURES:
            raise ValueError(f"show({picture!r}): expected one of {', '.join(map(repr, PICTURES))}")
        path = self.folder / f"{picture}.png"
        data = documents.png(path)
        if not data:
            raise ValueError(f"{path}: no such picture; the run's model may have none")
        return Picture(data)

    def __repr__(self) -> str:
        values = self._rows()[1][f"{self.predictor.name} (learned)"]
        test = documents.printable(", ".join(f"{name} {number(value, name)}" for name, value in values.items()))
        return f"Result({str(self.predictor)!r}, {str(self.folder)!r}, test: {test})"

    def _rows(self) -> tuple[list[str], dict[str, dict[str, float | None]]]:
        """The metrics of the set 'test', and what the model and the references reach, the best first."""
        test = mapping(mapping(self.result.get("best")).get("test"))
        metrics = [name for name in test if "/" not in name]
        references = mapping(self.result.get("references"))
        rows = {f"{self.predictor.name} (learned)": test, **{n: mapping(row) for n, row in references.items()}}
        numbers = {name: {m: finite(row.get(m)) for m in metrics} for name, row in rows.items()}
        order = ranked(numbers, metrics[0]) if metrics else list(rows)
        return metrics, {name: numbers[name] for name in order}

    def _repr_html_(self) -> str:
        """The test table and the examples."""
        metrics, rows = self._rows()
        lines = [element("tr", *(element("th", cell) for cell in ("predictor", *metrics)))]
        for name, values in rows.items():
            cells = (name, *(number(values[m], m) for m in metrics))
            lines.append(element("tr", *(element("td", cell) for cell in cells)))
        title = element("p", f"{self.predictor} · {self.folder}")
        return str(join([title, element("table", *lines), self._image()]))

    def _image(self) -> Html:
        try:
            return picture(self.show().png, "examples")
        except ValueError:
            return Html()


def run(name: str, *, overrides: Iterable[str] = (), **settings: Any) -> Result:
    """Run an experiment as the command line would and return its result.

    name: an experiment, `sigexp list experiments` shows them. settings: the command line's, with `__` for a dot:
    `run("bayer", model="deep", search__max_samples=10_000)`. overrides: more of them as the command line takes them,
    `["trainer.optimizer.lr=0.1"]`.

    The process's allocator is left as it is. An interrupt ends it after saving, as a KeyboardInterrupt whose first
    argument is the run's folder: `resume` goes on with it. Raises ValueError for what cannot work and
    `sigexp.search.records.Diverged` where every member diverged.
    """
    words = [f"experiment={name}"]
    words += [f"{key.replace('__', '.')}={override_text(value)}" for key, value in settings.items()]
    words += [overrides] if isinstance(overrides, str) else list(overrides)
    try:
        config, names = cli.compose(words)
    except Exception as error:
        raise ValueError(cli.explain(error)[1]) from error
    done = experiment.run(config, names, words, f"sigexp.run({name!r}, ...): {' '.join(words)}")
    return Result(done.folder, done.result, predictor.described(done.folder, done.model.cpu().eval()))


def resume(folder: str | Path) -> Result:
    """Go on with a run that was interrupted, as `sigexp resume` does; of a finished one its result.

    Raises ValueError for what is no run's folder, damaged or not trusted.
    """
    folder = Path(folder)
    if (folder / "result.json").is_file():
        return load(folder)
    cli.prepare()
    resuming.check(folder)
    config, names = restored(folder, (), ())
    done = experiment.run(config, names, record.overrides(folder), f"sigexp.resume({str(folder)!r})", again=folder)
    return Result(done.folder, done.result, predictor.described(done.folder, done.model.cpu().eval()))


def load(folder: str | Path) -> Result:
    """A finished run out of its folder: its result, and its best model in evaluation mode.

    A folder from a stranger runs nothing: models are rebuilt only of what sigexp's conf, or your own ./conf, offers.
    Raises ValueError for what is missing, damaged or not trusted.
    """
    cli.prepare()
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("model.json", "result.json")):
        raise ValueError(wrong_folder(folder))
    ready = predictor.load(folder)
    path = folder / "result.json"
    found = documents.load_json(path) if os.path.lexists(path) else {}
    return Result(folder, mapping(found), ready)
