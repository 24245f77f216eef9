"""`sigexp doctor`: what this machine has for sigexp, what is missing, and what to do about it.

The peak is that of a float32 matrix product, the arithmetic that training comes down to; compare it with the rates that
runs report.
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from sigexp import __version__, catalog, machine
from sigexp.usage import Parser

GEMM_SIZE = 1024  # rows and columns of the product's matrices on a CPU
GEMM_SIZE_CUDA = 4096
GEMM_SECONDS = 0.35  # for each number of threads
LEAST_PYTHON = (3, 11)
LEAST_MEMORY_GB, LEAST_DISK_GB = 2.0, 1.0
BUSY = ", fewer than with 1 thread; the machine is busy: timings will be off"
STYLES = {"ok": "green", "missing": "red", "warn": "yellow", "none": "dim"}


@dataclass(frozen=True)
class Finding:
    """One line. state: ok; missing: needed, exit code 1; warn: works, but should be looked at; none: optional."""

    section: str
    name: str
    state: str
    text: str


def doctor(words: list[str]) -> int:
    """Carry out the verb: 0, or 1 where something is missing that sigexp needs."""
    parser = Parser(prog="sigexp doctor", description="Versions, devices, peak arithmetic, and what is missing.")
    parser.parse_args(words)
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    needed, section = 0, ""
    for finding in findings():
        if finding.section != section:
            section = finding.section
            console.print(f"[bold]{section}[/bold]")
        needed += finding.state == "missing"
        style = STYLES[finding.state]
        word = "-" if finding.state == "none" else finding.state
        line = f"  [{style}]{word:<8}[/{style}]{finding.name:<18}{escape(finding.text)}"
        console.print(line, soft_wrap=True)
    said = f"[red]{needed} missing[/red]" if needed else "[green]nothing is missing[/green]"
    console.print(f"{said} that sigexp needs")
    return 1 if needed else 0


def findings() -> Iterator[Finding]:
    """All lines, each when it is known."""
    for section, check in CHECKS:
        try:
            yield from (Finding(section, *line) for line in check())
        except Exception as error:  # one check that fails must not keep the others from being made
            yield Finding(section, "", "warn", f"could not be checked: {type(error).__name__}: {error}")


Lines = Iterator[tuple[str, str, str]]  # name, state, text


def software() -> Lines:
    """sigexp, Python and what pyproject.toml asks for."""
    from packaging.requirements import Requirement

    yield "sigexp", "ok", f"{__version__} in {Path(__file__).parent}"
    known = sys.version_info >= LEAST_PYTHON
    least = ".".join(map(str, LEAST_PYTHON))
    yield "Python", "ok" if known else "missing", platform.python_version() + ("" if known else f": needs {least}")
    for text in declared():
        wanted = Requirement(text)
        if wanted.marker is None:
            yield wanted.name, *installed(text, optional=False)


def declared() -> list[str]:
    """The requirements of the installed package."""
    try:
        return requires("sigexp") or []
    except PackageNotFoundError:
        return []


def installed(text: str, *, optional: bool) -> tuple[str, str]:
    """State and words for a requirement."""
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return ("none" if optional else "missing"), f"not installed: pip install '{wanted.name}{wanted.specifier}'"
    if wanted.specifier.contains(found, prereleases=True):
        return "ok", found
    return ("warn" if optional else "missing"), f"{found}: pip install '{wanted.name}{wanted.specifier}'"


def extras() -> Lines:
    """What can be installed besides, by the names of pyproject.toml."""
    from packaging.requirements import Requirement

    groups: dict[str, list[str]] = {}
    for text in declared():
        marker = str(Requirement(text).marker or "")
        if "extra ==" in marker:
            name = marker.partition("extra ==")[2].strip().split()[0].strip("\"')")
            groups.setdefault(name, []).append(text.partition(";")[0].strip())
    if not groups:
        yield "", "none", "unknown: sigexp is not installed as a package"
    for name, wanted in groups.items():
        lacking = [
            text for text in wanted if Requirement(text).name != "sigexp" and installed(text, optional=True)[0] != "ok"
        ]
        if lacking:
            yield name, "none", f"without {', '.join(lacking)}: pip install 'sigexp[{name}]'"
        else:
            yield name, "ok", ", ".join(Requirement(text).name for text in wanted)


def hardware() -> Lines:
    """Devices, cores, memory, allocator."""
    import torch

    yield "cpu", "ok", machine.describe_device("cpu")
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield f"cuda:{number}", "ok", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if not torch.cuda.is_available():
        yield "cuda", "none", "none that torch can use; the CPU is used"
    if torch.backends.mps.is_available():
        yield "mps", "ok", "Apple's GPU"
    yield "cores", "ok", f"{machine.cores()} for this process, {os.cpu_count()} in the machine"
    torch.set_num_threads(machine.cores())
    yield "threads", "ok", f"{torch.get_num_threads()} for the arithmetic of a run (trainer.threads)"
    free_gb = machine.free_memory_bytes("cpu") / 1e9
    state = "ok" if free_gb >= LEAST_MEMORY_GB else "warn"
    yield "memory", state, f"{free_gb:.1f} GB free" + ("" if state == "ok" else ": lower dataset.size, search.members")
    if machine.tune_allocator():
        yield "allocator", "ok", "glibc, tuned for runs of the command line (trainer.tune_allocator)"
    else:
        yield "allocator", "none", "not glibc: left as it is; training is slower where it returns memory at once"


def arithmetic() -> Lines:
    """The peak of a float32 matrix product, by one thread and by all; the compiled kernels."""
    import torch

    threads = machine.cores()
    one = 0.0
    for count in dict.fromkeys((1, threads)):
        torch.set_num_threads(count)
        rate = peak_gflops("cpu", GEMM_SIZE)
        text = f"{rate:,.0f} GFLOP/s, float32 matrix product"
        busy = rate < one
        yield f"{count} thread{'s' if count > 1 else ''}", "warn" if busy else "ok", text + (BUSY if busy else "")
        one = one or rate
    for number in range(torch.cuda.device_count()):
        rate = peak_gflops(f"cuda:{number}", GEMM_SIZE_CUDA)
        yield f"cuda:{number}", "ok", f"{rate:,.0f} GFLOP/s, float32 matrix product"
    yield native_kernels()


def peak_gflops(device: str, size: int) -> float:
    """The best rate of a product of two square matrices within `GEMM_SECONDS`, in 1e9 operations a second."""
    import torch

    a, b = torch.rand(2, size, size, device=device)
    out = torch.empty_like(a)
    wait: Callable[[], None] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    end, best, made = time.perf_counter() + GEMM_SECONDS, float("inf"), 0
    while made < 2 or time.perf_counter() < end:
        wait()
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        wait()
        best, made = min(best, time.perf_counter() - began), made + 1
    return 2 * size**3 / best / 1e9


def native_kernels() -> tuple[str, str, str]:
    """Whether the C functions of the population are there; compiles them where that is still to do."""
    from sigexp.population import building, compiling

    name = "C kernels"
    if os.environ.get("SIGEXP_NATIVE") == "0":
        return name, "none", "switched off by SIGEXP_NATIVE=0"
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return name, "warn", "no C compiler (cc, gcc, clang): training is slower; on Debian: apt install gcc"
    libraries = [compiling.kernel(part) for part in building.SOURCES]
    if None in libraries:
        return name, "warn", f"{compiler} cannot compile them: training is slower; the log of a run says why"
    return name, "ok", f"compiled by {compiler}: {', '.join(library._name for library in libraries if library)}"


def data() -> Lines:
    """The classic sets, which are read from their original files, and conf."""
    from sigexp.data.cache import REMOTES
    from sigexp.data.cifar import has_cifar10
    from sigexp.data.idx import DIGIT_FILES, find_digit_file

    yield "conf", "ok", f"{catalog.conf_dir()}: {len(catalog.choices('experiment'))} experiments"
    own = catalog.user_conf()
    packaged = "the packaged one is this folder's" if Path("conf").is_dir() else ""
    other = "a checkout's or a run's, which this sigexp does not use" if catalog.unused_conf() else packaged
    yield "./conf", "ok" if own else "none", str(own or other or "none here; it would extend the packaged one")
    for name, remotes in REMOTES.items():
        folder = machine.cache_dir() / name
        digits = all(find_digit_file(folder, stem) for stem in DIGIT_FILES)
        if has_cifar10(folder) if name == "cifar10" else digits:
            yield name, "ok", str(folder)
            continue
        field = "images" if name == "cifar10" else "digits"
        some = f"{remotes[0].name}{', ...' if len(remotes) > 1 else ''}"
        yield name, "none", f"not here: dataset.{field}={name} downloads it, or put {some} into {folder}"


def folders() -> Lines:
    """Where sigexp writes."""
    cache = machine.cache_dir()
    size = 0
    for path in cache.rglob("*") if cache.is_dir() else ():
        with suppress(OSError):
            size += path.stat().st_size
    yield "cache", *writable(cache, f"{size / 1e6:,.0f} MB, $SIGEXP_DATA moves it", needed=False)
    yield "outputs", *writable(Path("outputs").absolute(), "outputs=DIR moves it", needed=True)


def writable(folder: Path, note: str, *, needed: bool) -> tuple[str, str]:
    """State and words for a folder that is there, or could be made."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return ("missing" if needed else "warn"), f"{folder} cannot be written ({note})"
    free = shutil.disk_usage(place).free / 1e9
    state = "ok" if free >= LEAST_DISK_GB else "warn"
    return state, f"{folder}{'' if place == folder else ' (not made yet)'}, {free:.1f} GB free; {note}"


CHECKS: list[tuple[str, Callable[[], Lines]]] = [
    ("software", software),
    ("extras", extras),
    ("hardware", hardware),
    ("arithmetic", arithmetic),
    ("data", data),
    ("folders", folders),
]
