"""Values of a YAML file against Python annotations, and hints for words that are none of the options."""

import difflib
import inspect
import re
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

LISTS = (tuple, list, Sequence)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint for a word that is none of the options: '; did you mean X?' or '; one of A, B, C'."""
    options = sorted(str(option) for option in options)
    close = difflib.get_close_matches(str(word), options, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; it can be one of {', '.join(options)}" if options else ""


def setting_meant(name: str, paths: Iterable[str]) -> str:
    """`did_you_mean` for a setting such as 'trainer.lr' that is none of the paths, in full paths: those with its last
    word, wherever they stand; else what is spelt alike beside it; else anywhere; else all that stand beside it."""
    parent, _, last = name.rpartition(".")
    ends: dict[str, list[str]] = {}
    for path in sorted(set(paths), key=lambda path: -difflib.SequenceMatcher(None, path, name).ratio()):
        ends.setdefault(path.rpartition(".")[2], []).append(path)
    beside = [path for found in ends.values() for path in found if path.rpartition(".")[0] == parent]
    alike = difflib.get_close_matches(last, [path.rpartition(".")[2] for path in beside], n=3, cutoff=0.5)
    found = ends.get(last) or [path for word in alike for path in ends[word] if path in beside]
    found = found or [path for word in difflib.get_close_matches(last, ends, n=2, cutoff=0.75) for path in ends[word]]
    return f"; did you mean {' or '.join(found[:3])}?" if found else did_you_mean("", beside)


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a YAML value fits a Python annotation; a whole number is a float too, a list may be a tuple."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return True
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(accepts(option, value) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin in LISTS or annotation in LISTS:
        if not isinstance(value, (list, tuple)):
            return False
        if not inner:
            return True
        if origin is not tuple or inner[-1] is Ellipsis:
            return all(accepts(inner[0], item) for item in value)
        return len(value) == len(inner) and all(map(accepts, inner, value))
    if origin is not None and isinstance(origin, type):
        return isinstance(value, origin)
    if annotation is None or annotation is type(None):
        return value is None
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:
        return isinstance(value, (int, float))
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def describe(annotation: Any) -> str:
    """An annotation in the words of an error message."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in inner)
    if origin is Literal:
        return " or ".join(repr(option) for option in inner)
    if origin in LISTS:
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)} values, each {describe(inner[0])}"
        return f"a list of {describe(inner[0])}" if inner else "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def override_text(value: Any) -> str:
    """A value as a Hydra override spells it: null, true, [1,2], and quotes where characters need them."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(override_text, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./:-]+", value):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value).lower() if isinstance(value, bool) else str(value)
