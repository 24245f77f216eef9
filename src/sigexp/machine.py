"""The machine a run has: allocator, threads, device, memory, versions. Nothing here happens on import."""

import ctypes
import functools
import gc
import os
import platform
import resource
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CORES_SHARE = "SIGEXP_CORES"  # in the environment of a sweep's jobs
PR_SET_PDEATHSIG = 1  # Linux's prctl.h
MADV_DONTFORK, MADV_DOFORK = 10, 11  # Linux's mman.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def tune_allocator() -> bool:
    """Let glibc keep freed memory: big tensors would else be page-faulted anew every step, at several times the cost
    of the arithmetic. For the process of the command line only; False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2_000_000_000), (M_TOP_PAD, 1 << 28))
    )


def end_with_parent(parent: int) -> None:
    """Have this process killed when the one that started it ends, in whatever way. Linux alone can; elsewhere a process
    learns of it at its next look at the pipe.

    parent: that one's process id, because it may have ended before this call.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def without(blocks: Iterable[tuple[int, int]]) -> Iterator[None]:
    """Processes that are forked within do not have these blocks of memory, (address, bytes), up to the ends that share
    a page with others. Forks are quicker for it, by 35 ms a gigabyte; one that looks there is killed. On Linux alone.
    """
    page = os.sysconf("SC_PAGESIZE")
    whole = [(-(-first // page) * page, (first + size) // page * page) for first, size in blocks]
    try:
        advise = ctypes.CDLL("libc.so.6").madvise
    except (OSError, AttributeError):
        whole = []

    def each(advice: int) -> None:
        for first, end in whole:
            if first < end:
                advise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), advice)

    each(MADV_DONTFORK)
    try:
        yield
    finally:
        each(MADV_DOFORK)


def release_memory() -> None:
    """Hand memory that is free back to the system, between runs of one process; the allocator, tuned, keeps it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def cores() -> int:
    """Cores this process may use: its affinity, the quota of its container (cgroup v2) rounded up, and the share that
    a sweep whose jobs run at once leaves to each."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(CORES_SHARE, "")
    if share.isdigit():
        count = max(1, min(count, int(share)))
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or 'max'
        return count


def share(at_once: int) -> dict[str, str]:
    """What the environment of each of so many processes at once says of its cores."""
    return {CORES_SHARE: str(max(1, cores() // at_once))}


def pick_device(name: str) -> str:
    """The device `auto` stands for, or `name` itself if it is there; raises ValueError where it is not."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise ValueError(f"device={name}: there is none on this machine; use device=cpu or device=auto")
    if kind == "cuda" and ":" in name and not name.partition(":")[2].isdigit():
        raise ValueError(f"device={name}: expected cuda or cuda:NUMBER")
    if kind == "cuda" and ":" in name and int(name.partition(":")[2]) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return name


@contextmanager
def autocast(device: Any, model: Any) -> Iterator[None]:
    """Products and convolutions of a torch model in bfloat16. Of recurrences oneDNN has none on processors without
    AVX-512, and fails; torch's own take its place."""
    import torch

    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    recurrent = any(isinstance(module, torch.nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        if device.type == "cpu" and recurrent and not supported:
            with warnings.catch_warnings(action="ignore"):  # of Intel's GPUs
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


def describe_device(device: str) -> str:
    """The device in words: the name of the card, or the processor and the cores in use."""
    if device.startswith("cuda"):
        import torch

        return f"{device}: {torch.cuda.get_device_name(device)}"
    count = cores()
    return f"{device}: {_processor()}, {count} core{'s' * (count != 1)}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def configure_torch(threads: int | None, deterministic: bool) -> None:
    """Settings of the whole process, made by the command line alone: threads of the arithmetic, determinism, and
    numbers too small to be normal (less than 1.2e-38 in float32), which become 0.

    Such numbers come where a sigmoid saturates or a unit has died, whose momentum fades; with them the arithmetic is
    three times as slow. A thread takes the setting over from the one that starts it.
    """
    import numpy as np
    import torch

    for kind in (np.float32, np.float64):
        np.finfo(kind)  # looked up now: NumPy before 2.4 warns where it first meets a 0 in place of its smallest number
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads or cores())
    # As torch.use_deterministic_algorithms, which imports torch.compile's compiler besides: two seconds.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    # Filling memory that is written next, and never read before, costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def reset_peak_memory() -> None:
    """Start counting the peak anew, where the system can (Linux); else it is the peak of the process. A card's too."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def peak_memory_bytes() -> int:
    """The most memory of the host that this process has held since `reset_peak_memory`."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_memory_bytes(device: str) -> int | None:
    """The most memory of a card that this process's tensors have held at once; None for the processor's own."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def free_memory_bytes(device: str) -> int:
    """Memory that could be had on a device: of a card, or of the host within the limit of its container (cgroup v2)."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = 2**33
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    return max(free, 2**26)


def cache_dir() -> Path:
    """Where downloads, drawn pools and plans are kept, `$SIGEXP_DATA`, else `$XDG_CACHE_HOME/sigexp`, else
    `~/.cache/sigexp`; the folder need not exist yet."""
    if chosen := os.environ.get("SIGEXP_DATA"):
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "sigexp"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of sigexp, Python and what determines results."""
    names = (
        "sigexp",
        "torch",
        "numpy",
        "scipy",
        "opencv-python",
        "scikit-image",
        "hydra-core",
        "omegaconf",
        "tensorboard",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
