"""Digits 28x28 for every dataset that needs some: synthetic ones, the classic sets, or a user's own IDX files.

Splits never share a digit. Synthetic digits are drawn per split. Of files, 'test' is the test file, 'valid' the last
tenth of the training file but at most its last 5000, and 'train' what comes before.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from sigexp.data.cache import REMOTES, fetch
from sigexp.data.idx import read_digit_folder
from sigexp.data.synthetic_digits import VERSION, synthetic_digits

POOLS = {"train": 20_000, "valid": 1000, "test": 10_000}
NAMES = ("synthetic", *(name for name in REMOTES if "mnist" in name))


@dataclass(frozen=True)
class DigitSource:
    """Digits by split. sizes: how many a split has; source: what they are, for the result."""

    load: Callable[[str], tuple[np.ndarray, np.ndarray]]
    sizes: Mapping[str, int]
    source: Mapping[str, str]

    def images(self, split: str) -> np.ndarray:
        """Grey values [N, 28, 28] uint8, ink bright, read-only."""
        return self.load(split)[0]

    def labels(self, split: str) -> np.ndarray:
        """Classes [N] uint8, read-only."""
        return self.load(split)[1]

    def check(self, split: str, field: str, wanted: int) -> None:
        """Raise ValueError where a split cannot give as many digits as the field asks for."""
        if not 1 <= wanted <= self.sizes[split]:
            what = f"the {split} digits of {self.source['digits']}"
            raise ValueError(f"{field}={wanted}: expected 1..{self.sizes[split]}, {what}")


def digit_source(digits: str) -> DigitSource:
    """The digits of 'synthetic', 'mnist', 'fashion_mnist', or a folder with the four original IDX files.

    Raises ValueError where the name is none of these, or where files are missing or damaged.
    """
    if digits == "synthetic":
        return DigitSource(_synthetic, POOLS, {"digits": f"synthetic digits, version {VERSION}"})
    if digits in NAMES:
        return _from_files(fetch(digits), digits)
    folder = Path(os.path.expanduser(digits))
    if not os.path.isdir(folder):  # `Path.is_dir` raises where a name is too long
        near = difflib.get_close_matches(digits, NAMES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"dataset.digits={digits}: expected {', '.join(NAMES)}, or a folder with the original IDX files{hint}"
        )
    return _from_files(folder, str(digits))


@lru_cache(maxsize=len(POOLS))
def _synthetic(split: str) -> tuple[np.ndarray, np.ndarray]:
    return _locked(*synthetic_digits(split, POOLS[split]))


def _from_files(folder: Path, name: str) -> DigitSource:
    found = read_digit_folder(folder)
    images, labels = found["train"]
    if len(images) < 2:
        raise ValueError(f"{folder}: {len(images)} training image; expected at least 2, one of them for validation")
    kept = len(images) - max(1, min(5000, len(images) // 10))
    splits = {
        "train": _locked(images[:kept], labels[:kept]),
        "valid": _locked(images[kept:], labels[kept:]),
        "test": _locked(*found["test"]),
    }
    digest = hashlib.sha256()
    for arrays in found.values():
        for array in arrays:
            digest.update(array.data)
    return DigitSource(
        partial(_look_up, splits),
        {split: len(arrays[0]) for split, arrays in splits.items()},
        {"digits": name, "sha256": digest.hexdigest()[:16]},
    )


def _look_up(splits: Mapping[str, tuple[np.ndarray, np.ndarray]], split: str) -> tuple[np.ndarray, np.ndarray]:
    return splits[split]


def _locked(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same arrays, read-only: every dataset of a process shares them."""
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels
