"""Layers of populations in C, compiled for this machine at their first use and kept in the cache.

The compiler is `$CC`, else cc, gcc or clang. Imports no torch: compilers are at work while a command imports it.
"""

import atexit
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sigexp.machine import cache_dir, cores

HERE = Path(__file__).parent
# Three libraries, because most runs do not need the others, and need not wait for their compilers.
LAYERS, ACROSS, LSTM = "layers", "across", "lstm"
SOURCES = {
    LAYERS: ["convolution", "descent", "moments", "normalization", "pointwise", "update"],
    ACROSS: ["across"],
    LSTM: ["lstm", "readout"],
}
_headers = "exponential floats lstm pointwise products update vectors"
HEADERS = [HERE / f"{name}.h" for name in _headers.split()]
# Not -ffast-math: NaN has to stay NaN, so that a member that diverged is seen.
FLAGS = (
    "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared",
    "-fPIC", "-w",
)  # fmt: skip
IN_VECTORS = ("across", "convolution", "moments")  # with -O2 they are as quick, and compiled in half the time
NICE = 10  # of compilers that nobody waits for yet: what is imported meanwhile goes first, and has a core
TIMEOUT_S, POLL_S = 120, 0.005
Started = subprocess.Popen[bytes]
SILENT: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
UNFINISHED = ".kernels-"
_compilers: set[Started] = set()
_begun: set[str] = set()  # parts that are compiled, or are being compiled
_awaited: set[str] = set()  # parts that somebody waits for


def begin(part: str = LAYERS) -> None:
    """Compile in a thread what is still to be compiled, beside imports and data; `compiling.kernel` waits for it."""

    def build() -> None:
        with suppress(Exception):  # which `kernel` will meet again, and tell
            built(part, NICE)

    if os.environ.get("SIGEXP_NATIVE") != "0" and part not in _begun:
        _begun.add(part)
        threading.Thread(target=build, daemon=True).start()


def built(part: str, nice: int = 0) -> Path:
    """Path of a compiled library, after compiling it where that is still to do. nice: of the compilers, beyond
    this process's own."""
    compiler = _compiler()
    # What the compiler defines names its own version and every extension of this processor.
    target = _run([*compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    sources = [HERE / f"{name}.c" for name in SOURCES[part]]
    texts = [source.read_bytes() for source in [*HEADERS, *sources]]
    digest = hashlib.sha256(b"\0".join([*texts, repr((compiler, FLAGS, IN_VECTORS)).encode(), target]))
    path = cache_dir() / f"kernels-{part}-{digest.hexdigest()[:24]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not nice:
        _awaited.add(part)
    with _alone(sources[0]):
        if not path.exists():  # else another process has compiled it meanwhile
            for left in path.parent.glob(f"{UNFINISHED}*"):  # by a process that was killed
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime > 2 * TIMEOUT_S:
                        shutil.rmtree(left)
            _compile(compiler, part, sources, path, nice)
    return path


def _compile(compiler: Sequence[str], part: str, sources: Sequence[Path], path: Path, nice: int) -> None:
    """Sources side by side, one a core where somebody waits for them, else one core less.

    Processes are polled, in a thread that nobody has to wait for: Python's end waits for those of a pool.
    """
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as place, ExitStack() as stack:
        objects = [f"{place}/{source.stem}.o" for source in sources]
        left, under_way, until = list(zip(sources, objects, strict=True)), list[Started](), time.monotonic() + TIMEOUT_S
        while left or under_way:
            while left and len(under_way) < max(1, cores() - (part not in _awaited)):
                source, into = left.pop(0)
                level = "-O2" if source.stem in IN_VECTORS else "-O3"
                command = [*compiler, level, *FLAGS, "-c", str(source), "-o", into]
                one = subprocess.Popen(command, start_new_session=True, **SILENT)
                _compilers.add(one)
                stack.callback(_end, one)
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, one.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
                under_way.append(one)
            time.sleep(POLL_S)
            if any(one.poll() for one in under_way) or time.monotonic() > until:
                raise RuntimeError(f"{compiler[0]} failed, or took longer than {TIMEOUT_S} s")
            under_way = [one for one in under_way if one.poll() is None]
        _run([*compiler, *FLAGS, *objects, "-o", f"{place}/{path.name}"])
        os.replace(f"{place}/{path.name}", path)


def _end(compiler: Started) -> None:
    """With the processes that it has started."""
    if compiler.poll() is None:
        with suppress(OSError):
            os.killpg(compiler.pid, signal.SIGKILL)
        compiler.wait()
    _compilers.discard(compiler)


@atexit.register
def _end_all() -> None:
    for compiler in list(_compilers):
        _end(compiler)


@contextmanager
def _alone(source: Path) -> Iterator[None]:
    """Hold the lock of a part's first source, so that of many runs that start together one compiles and the others
    wait. The system lets go of it however the process ends; a file system without locks grants it to everybody."""
    descriptor = os.open(source, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing it would leave it to a fork that has it too
        os.close(descriptor)


def _compiler() -> list[str]:
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        raise OSError("there is no C compiler (cc, gcc or clang)")
    return [found]


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, check=True, timeout=TIMEOUT_S, **{**SILENT, "stdout": subprocess.PIPE})
    found: bytes = done.stdout
    return found
