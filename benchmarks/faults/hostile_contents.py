"""More folders of an attacker: sizes without end, markup and terminal escapes, wrong types, and damaged checkpoints."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults.hostile_cases import BUILDS, NONE, SHOWS, Bomb, Case, change, content, emptied, override, sparse

PAYLOAD = "<script>alert(1)</script>\x1b]0;pwned\x07\x1b[2J\u202e[red]\"'><img src=x onerror=alert(1)>${oc.env:HOME}\n`"
WRONG: tuple[Any, ...] = (None, True, -1, 1e308, "x", [], {}, [[]], {"a": {}}, 10**400, float("nan"), "\ud800")


def bombs() -> Iterator[Case]:
    """What would take memory or time without end."""
    what = "sizes and depths without end"
    for shape in ([1, 2**24, 2**24], [2**24, 1, 1], [1, 2**23, 4], [10**400, 1, 1], [1] * 9, [], [0, 1], [1, 24.5, 24]):
        yield Case(what, f"shape {str(shape)[:20]}", change("model.json", "input_shape", to=shape), BUILDS)
    for size in (10**6 + 1, 10**9 + 1, 10**18 + 1, 10**400 + 1, 0, -1, 1.5, True, "5", None, [5], {}, float("nan")):
        node = change("model.json", "model", "kernel_size", to=size)
        yield Case(what, f"kernel_size {str(size)[:20]}", node, BUILDS)
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))
    laughs += "dataset: {_target_: *a11}\noverrides: *a11\n"
    for name, verbs in (("config.yaml", SHOWS | BUILDS | {"replay"}), ("composed.yaml", SHOWS | {"rerun"})):
        yield Case(what, f"{name}: aliases", content(name, laughs), frozenset(verbs))
        yield Case(what, f"{name}: deep", content(name, "[" * 50_000), frozenset(verbs))
        yield Case(what, f"{name}: long", content(name, "a: 1\n" * 50_000), frozenset(verbs))
        odd = "a: !!timestamp x\nb: !!int ''\nc: !!bool x\n"
        yield Case(what, f"{name}: odd tags", content(name, odd), frozenset(verbs))
    deep: Any = 5
    for _ in range(60):
        deep = {"a": [deep]}
    for name, verbs in (("model.json", BUILDS), ("config.yaml", frozenset({"replay"}))):
        yield Case(what, f"{name}: a deep model", change(name, "model", "kernel_size", to=deep), verbs)
    for name in ("model.json", "result.json", "cases.json"):
        verbs = {"model.json": BUILDS, "result.json": SHOWS | {"load", "replay"}, "cases.json": NONE}[name]
        yield Case(what, f"{name}: deep", content(name, "[" * 200_000), frozenset(verbs))
        yield Case(what, f"{name}: 1 TB", sparse(name, 2**40), frozenset(verbs))
    yield Case(what, "weights of 1 TB", sparse("model.safetensors", 2**40), BUILDS)
    yield Case(what, "events of 1 TB", lambda f, o: sparse(next(f.glob("events*")).name, 2**40)(f, o))
    yield Case(what, "rounds of 1 TB", sparse("rounds.jsonl", 2**40), frozenset({"report", "replay"}))
    yield Case(what, "a header that lies", content("model.safetensors", lambda b: b"\xff" * 7 + b"\0" + b[8:]), BUILDS)
    huge = json.dumps({"w": {"dtype": "F32", "shape": [10**4000, 0] * 40, "data_offsets": [0, 0]}}).encode()
    yield Case(what, "a tensor without end", content("model.safetensors", packed(huge)), BUILDS)
    for key, value in (("round", 10**9), ("id", 10**300), ("parent", 10**9), ("total_samples", 1e308), ("round", -1)):
        poison = rounds(lambda line, key=key, value=value: {**line, key: value})
        yield Case(what, f"rounds: {key}", poison, frozenset({"replay"}) if key in ("round", "total_samples") else NONE)
    yield Case(what, "rounds: a ring", rounds(lambda line: {**line, "parent": line["id"]}), frozenset({"replay"}))
    many = rounds(lambda line: {**line, "hparams": {f"h{i}": line["id"] * i for i in range(500)}})
    yield Case(what, "rounds: hyperparameters", many, frozenset({"replay"}))
    yield Case(what, "cases: long texts", change("cases.json", "metric", to="x" * 9_000_000), frozenset({"report"}))
    yield Case(what, "a long override", override("+a=" + "[" * 3000), frozenset({"rerun"}))
    yield Case(what, "a longer override", override("+a=" + "x" * 60_000), frozenset({"rerun"}))
    task = ["seed=range(0,1000000000)", *(f"a{i}=1,2,3,4,5,6,7,8,9" for i in range(20))]
    sweep = {"hydra": {"overrides": {"task": task}}}
    yield Case(what, "a sweep without end", lambda f, o: endless(f, sweep), SHOWS)


def endless(folder: Path, sweep: Mapping[str, Any]) -> None:
    emptied(folder)
    (folder / "multirun.yaml").write_text(yaml.safe_dump(sweep))


def packed(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(8, "little") + header + data


def rounds(turn: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path, Path], None]:
    def poison(folder: Path, outside: Path) -> None:
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        (folder / "rounds.jsonl").write_text("".join(json.dumps(turn(json.loads(line))) + "\n" for line in lines))

    return poison


def everything(value: Any) -> Any:
    """A document in which every text and every name says the payload besides."""
    if isinstance(value, dict):
        return {f"{key}": everything(item) for key, item in value.items()} | {PAYLOAD: PAYLOAD}
    if isinstance(value, list):
        return [*map(everything, value), *([PAYLOAD] if all(isinstance(item, str) for item in value) else [])]
    return f"{value}{PAYLOAD}" if isinstance(value, str) else value


def markup() -> Iterator[Case]:
    """Markup, scripts and terminal escapes in texts and names."""
    what = "HTML, scripts and terminal escapes"

    def told(name: str) -> Callable[[Path, Path], None]:
        def poison(folder: Path, outside: Path) -> None:
            text = (folder / name).read_text()
            whole = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
            dump = json.dumps if name.endswith("json") else yaml.safe_dump
            (folder / name).write_text(dump(everything(whole)))

        return poison

    for name in ("result.json", "config.yaml", "composed.yaml", "cases.json", "model.json"):
        yield Case(what, f"all of {name}", told(name))
    yield Case(what, "all rounds", rounds(everything))
    for field in ("experiment", "command", "stopped", "search", "device"):
        yield Case(what, f"result.json {field}", change("result.json", field, to=PAYLOAD))
    for field in ("test", "valid"):
        yield Case(what, f"metrics of {field}", change("result.json", "best", field, to={PAYLOAD: 0.5, "mse": 0.2}))
    yield Case(what, "references", change("result.json", "references", to={PAYLOAD: {"mse": 0.5, PAYLOAD: 1.0}}))
    yield Case(what, "claims", change("result.json", "claims", to=[{"text": PAYLOAD, "holds": None, "condition": "a"}]))
    yield Case(what, "model.json name", change("model.json", "name", to=PAYLOAD))
    yield Case(what, "model.json experiment", change("model.json", "experiment", to=PAYLOAD))
    yield Case(what, "classes", classes, NONE)
    yield Case(what, "a file's name", content("a\x1b[2J\u202e[red]<b>c.txt", "x"))


def classes(folder: Path, outside: Path) -> None:
    """A model of classes, whose labels are printed."""
    change("model.json", "labels", to=[PAYLOAD, f"{PAYLOAD} 2"])(folder, outside)
    change("model.json", "kind", to="class")(folder, outside)


def checkpoints() -> Iterator[Case]:
    """Checkpoints, for `resume`: what is damaged is left out, what is sealed anew must do no harm either."""
    what = "checkpoints"
    for suffix in (".json", ".safetensors"):
        yield Case(what, f"pickled {suffix}", each(suffix, lambda p: p.write_bytes(pickle.dumps(Bomb()))))
        yield Case(what, f"linked {suffix}", each(suffix, outward), frozenset({"resume"}))
        yield Case(what, f"1 TB {suffix}", each(suffix, lambda p: os.truncate(p, 2**40)))
        yield Case(what, f"a pipe {suffix}", each(suffix, piped), frozenset({"resume"}))
    yield Case(what, "deep", each(".json", lambda p: p.write_text("[" * 200_000)))
    for name in ("run.log", "rounds.jsonl"):
        yield Case(what, f"{name} is a pipe", unfinished(lambda f, o, n=name: piped(f / n)), frozenset({"resume"}))
    for value in ("../../x", {"_target_": "os.system"}, PAYLOAD, 10**400, None, -1, [], 1e308):
        yield Case(what, f"every text {str(value)[:12]!r}", each(".json", partial(resealed, turn=filled, value=value)))
        yield Case(
            what, f"every number {str(value)[:12]!r}", each(".json", partial(resealed, turn=counted, value=value))
        )
    huge = packed(json.dumps({"w": {"dtype": "F32", "shape": [2**60, 0], "data_offsets": [0, 0]}}).encode())
    yield Case(
        what, "other tensors", each(".json", partial(resealed, turn=lambda data, _: data, value=None, tensors=huge))
    )


def unfinished(poison: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    """Of a run that was interrupted."""

    def both(folder: Path, outside: Path) -> None:
        for name in ("result.json", "model.json", "model.safetensors", "report.html", "cases.json"):
            (folder / name).unlink()
        outside.mkdir(exist_ok=True)
        poison(folder, outside)

    return both


def each(suffix: str, do: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    """Something done to every file of its checkpoints."""

    def poison(folder: Path, outside: Path) -> None:
        for path in sorted((folder / "checkpoints").glob(f"*{suffix}")):
            do(path)

    return unfinished(poison)


def resealed(path: Path, turn: Callable[[Any, Any], Any], value: Any, tensors: bytes | None = None) -> None:
    """Another content with right checksums."""
    from sigexp.track.checkpoint import sealed

    body = json.loads(path.read_text())["checkpoint"]
    kept = {name: body[name] for name in ("signature", "bytes", "tensors_sha256", "files")}
    if tensors is not None:
        path.with_suffix(".safetensors").write_bytes(tensors)
        kept |= {"bytes": len(tensors), "tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    path.write_text(sealed({**turn(body, value), **kept}))


def filled(document: Any, value: Any) -> Any:
    """The document with a value in place of every text."""
    return replaced_in(document, str, value)


def counted(document: Any, value: Any) -> Any:
    """The document with a value in place of every number."""
    return replaced_in(document, (int, float), value)


def replaced_in(document: Any, kind: type | tuple[type, ...], value: Any) -> Any:
    if isinstance(document, dict):
        return {key: replaced_in(item, kind, value) for key, item in document.items()}
    if isinstance(document, list):
        return [replaced_in(item, kind, value) for item in document]
    return value if isinstance(document, kind) else document


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def outward(path: Path) -> None:
    outside = path.parents[2] / "outside"
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)


def places(document: Any, depth: int = 4, *before: str | int) -> Iterator[tuple[str | int, ...]]:
    """The path of every value in a document, of lists the first alone."""
    if depth and isinstance(document, dict):
        for key, value in document.items():
            yield (*before, key)
            yield from places(value, depth - 1, *before, key)
    elif depth and isinstance(document, list) and document:
        yield (*before, 0)
        yield from places(document[0], depth - 1, *before, 0)


def wrong_types(folder: Path) -> Iterator[Case]:
    """Every value of every document as something else, each kind of wrong in turn."""
    names = ("result.json", "model.json", "config.yaml", "composed.yaml", "cases.json")
    for name in names:
        text = (folder / name).read_text()
        document = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
        for i, path in enumerate(places(document)):
            usable: Sequence[Any] = WRONG if name.endswith("json") else WRONG[:-1]
            value = usable[i % len(usable)]
            said = f"{name} {'.'.join(map(str, path))} = {str(value)[:9]!r}"
            yield Case("wrong types everywhere", said, change(name, *path, to=value))
