"""The device `strict` of device.cpp, for a process of its own: autograd starts a thread for it, after which no process
may be forked, and torch takes it for the machine's accelerator.

    python strict_device.py LIBRARY ARGUMENT...

is `sigexp ARGUMENT...` on it, with device=mps.
"""

import ctypes
import os
import subprocess
import sys
import types
from pathlib import Path

import torch

HERE = Path(__file__).parent


def compiled(folder: Path) -> Path:
    """device.cpp as a library. Two test processes may compile it at once."""
    home, library = Path(torch.__file__).parent, folder / "strict.so"
    includes = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    own = folder / f"strict-{os.getpid()}.so"
    command = ["c++", "-shared", "-fPIC", "-std=c++20", "-O0", *includes, str(HERE / "device.cpp"), "-o", str(own)]
    found = subprocess.run([*command, f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    return own.rename(library)


def load(library: str) -> None:
    """Let torch know the device."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("strict")
    module = types.ModuleType("torch.strict")
    settings = {
        "device_count": lambda: 1, "is_available": lambda: True, "current_device": lambda: 0,
        "_is_in_bad_fork": lambda: False, "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(), "set_rng_state": lambda state, device=None: None,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(module, name, value)
    torch._register_device_module("strict", module)
    plain = torch.UntypedStorage.clone

    def clone(self: torch.UntypedStorage) -> torch.UntypedStorage:
        if self.device.type != "strict":
            return plain(self)
        made = torch.empty(self.nbytes(), dtype=torch.uint8, device="strict").untyped_storage()
        ctypes.memmove(made.data_ptr(), self.data_ptr(), self.nbytes())
        return made

    torch.UntypedStorage.clone = clone  # type: ignore[method-assign]  # torch's makes an empty one on the CPU


def waits() -> int:
    """How often the host would have waited for the device so far."""
    count: int = torch.ops.strict.waits()
    return count


def sigexp(library: str, *words: str) -> None:
    """The command, where device=mps means this one."""
    from sigexp import cli, machine

    load(library)
    pick = machine.pick_device
    machine.pick_device = lambda name: "strict" if name == "mps" else pick(name)
    sys.argv = ["sigexp", *words]
    cli.script()


if __name__ == "__main__":
    sigexp(*sys.argv[1:])
