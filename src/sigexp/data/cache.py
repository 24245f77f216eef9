"""The cache folder: drawn pools that are kept, and the original files of the classic sets.

The folder is `$SIGEXP_DATA`, else `$XDG_CACHE_HOME/sigexp`, else `~/.cache/sigexp`. Files of a classic set lie in a
folder of their own below it, as they were published, whether downloaded or put there by hand.
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from sigexp.data.cifar import ARCHIVE, has_cifar10
from sigexp.data.download import NETWORK_ERRORS, Refused, Remote, download
from sigexp.data.idx import DIGIT_FILES, find_digit_file
from sigexp.machine import cache_dir


def _remotes(files: Mapping[str, tuple[str, int]], *bases: str) -> tuple[Remote, ...]:
    return tuple(
        Remote(name, digest, size, tuple(base + name for base in bases)) for name, (digest, size) in files.items()
    )


# Digests and sizes are those of tensorflow-datasets' url_checksums/{mnist,fashion_mnist,cifar10}.txt.
REMOTES: Mapping[str, tuple[Remote, ...]] = {
    "mnist": _remotes(
        {
            "train-images-idx3-ubyte.gz": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                9_912_422,
            ),
            "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
            "t10k-images-idx3-ubyte.gz": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                1_648_877,
            ),
            "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
        },
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion_mnist": _remotes(
        {
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                26_421_880,
            ),
            "train-labels-idx1-ubyte.gz": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                4_422_102,
            ),
            "t10k-labels-idx1-ubyte.gz": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
        },
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    "cifar10": _remotes(
        {ARCHIVE: ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170_052_171)},
        "https://www.cs.toronto.edu/~kriz/",
    ),
}


def load_arrays(name: str) -> dict[str, np.ndarray] | None:
    """Arrays kept under `name` in the cache folder, or None where there are none or the file is damaged."""
    try:
        with (cache_dir() / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}
    except Exception:  # a damaged zip raises a dozen kinds of error, and all mean: draw them again
        return None


def save_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays under `name`, atomically; a folder that cannot be written only means that nothing is kept."""
    path = cache_dir() / f"{name}.npz"
    unfinished: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{name}-", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, path)
        unfinished = None
    except OSError:
        pass
    finally:
        if unfinished:
            with suppress(OSError):
                os.unlink(unfinished)


def fetch(name: str) -> Path:
    """The folder with the original files of 'mnist', 'fashion_mnist' or 'cifar10', downloaded where they are missing.

    Raises ValueError where a file is missing and cannot be downloaded, and OSError where the disk refuses.
    """
    if name not in REMOTES:
        raise ValueError(f"{name!r} has no known files: expected one of {', '.join(REMOTES)}")
    folder = cache_dir() / name
    missing = _missing(name, folder)
    for remote in missing:
        _download(remote, folder, missing)
    return folder


def _missing(name: str, folder: Path) -> list[Remote]:
    if name == "cifar10":
        return [] if has_cifar10(folder) else list(REMOTES[name])
    return [
        remote for remote, stem in zip(REMOTES[name], DIGIT_FILES, strict=True) if find_digit_file(folder, stem) is None
    ]


def _by_hand(folder: Path, missing: list[Remote]) -> str:
    return f"put {', '.join(remote.name for remote in missing)} into {folder}"


def _download(remote: Remote, folder: Path, missing: list[Remote]) -> None:
    """One file from the first mirror that gives it."""
    reasons = []
    for url in remote.mirrors:
        try:
            download(remote, url, folder)
            return
        except (Refused, *NETWORK_ERRORS) as reason:
            reasons.append(f"{url}: {' '.join(str(reason).split())[:160] or type(reason).__name__}")
    raise ValueError(f"{remote.name} could not be downloaded ({'; '.join(reasons)}); {_by_hand(folder, missing)}")
