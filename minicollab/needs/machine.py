"""What this machine is: processor, memory, graphics cards, and what is installed on it."""

from __future__ import annotations

import csv
import ctypes
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ctypes import byref, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from minicollab.engine.sizing import MIB, Memory, cores, cpu_memory

_PATIENCE = 5  # seconds; a driver in trouble does not answer at all
_FIELDS = ("name", "driver_version", "memory.total", "memory.free")
# What must go together; each of them says with which versions of the others it does.
_STACK = (
    "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers",
    "huggingface_hub", "unsloth", "unsloth_zoo", "llama-cpp-python", "gguf", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """An NVIDIA card; memory in bytes."""

    name: str
    driver: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """`ram` in bytes. `llama` is what llama.cpp was built with and finds here, such as "AVX2",
    "AMX_INT8", "GPU"; empty if it is not installed. `training` says that torch can use the cards."""

    cpu: str
    cores: int
    ram: Memory
    cards: tuple[Card, ...]
    llama: frozenset[str]
    training: bool

    @property
    def vram(self) -> Memory | None:
        """Where llama.cpp computes if not on the CPU: it spreads the layers over all cards."""
        if not self.cards or "GPU" not in self.llama:
            return None
        free, total = sum(card.free for card in self.cards), sum(card.total for card in self.cards)
        return Memory(free, total, tuple(card.name for card in self.cards))


def look() -> Machine:
    """This machine as it is now."""
    found = cards()
    return Machine(_cpu(), cores(), cpu_memory(), found, llama_features(), bool(found) and _torch_cuda())


def cards() -> tuple[Card, ...]:
    """What nvidia-smi says; nothing where there is no driver, or it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
        return tuple(read_cards(done.stdout))
    return ()


def read_cards(text: str) -> Iterable[Card]:
    """The cards in nvidia-smi's table. A row without figures ("[N/A]": memory shared with the CPU,
    or a card that was lost) is none that can be counted on."""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        with suppress(ValueError):
            name, driver, total, free = row
            yield Card(name, driver, int(total) * MIB, int(free) * MIB)


def energy() -> float | None:
    """Watt-hours that all cards have used since their drivers were loaded, other programs' share included
    (NVML's nvmlDeviceGetTotalEnergyConsumption); None where no card tells: Volta was the first to."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2():
            return None
        count, card, millijoules, told = c_uint(), c_void_p(), c_ulonglong(), list[int]()
        nvml.nvmlDeviceGetCount_v2(byref(count))
        for index in range(count.value):
            nvml.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(card))
            if not nvml.nvmlDeviceGetTotalEnergyConsumption(card, byref(millijoules)):
                told.append(millijoules.value)
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no driver, or one that does not know how
        return None
    return sum(told) / 3.6e6 if told else None


@cache
def llama_features() -> frozenset[str]:
    try:
        import llama_cpp as lc
    except (ImportError, OSError, RuntimeError):  # the last: its library does not load
        return frozenset()
    said = lc.llama_print_system_info().decode("utf-8", "replace").replace(":", "|").split("|")
    on = {part.split("=")[0].strip() for part in said if part.strip().endswith("= 1")}
    return frozenset({"llama.cpp", *on} | ({"GPU"} if lc.llama_supports_gpu_offload() else set()))


def _torch_cuda() -> bool:
    with suppress(ImportError, OSError):
        import torch

        return torch.cuda.is_available()
    return False


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def disk_free(folder: Path) -> int:
    """Bytes left on the disk that holds `folder`, or will."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


# Versions


def installed(packages: Sequence[str] = _STACK) -> dict[str, str]:
    """The versions of these packages, by default the training stack's, of what there is of them."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def conflicts(have: Mapping[str, str]) -> list[str]:
    """What a package of `have` declares about another one of them that does not hold."""
    from packaging.requirements import Requirement

    named = {_canonical(name): (name, number) for name, number in have.items()}
    found = []
    for name in have:
        for line in _requires(name):
            wish = Requirement(line)
            other, number = named.get(_canonical(wish.name), ("", ""))
            asked = other and (not wish.marker or wish.marker.evaluate({"extra": ""}))
            if asked and not wish.specifier.contains(number, prereleases=True):
                found.append(f"{name} {have[name]} wants {other}{wish.specifier}, and {number} is installed")
    return list(dict.fromkeys(found))


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def pins(folder: Path) -> dict[str, str]:
    """The versions that a checkout's requirements name (`NAME==VERSION`); nothing without one."""
    files = [folder / name for name in ("cpu.txt", "no-deps.txt", "llama.txt")]
    lines = (line for file in files if file.is_file() for line in file.read_text("utf-8").splitlines())
    return dict(line.split("==") for line in lines if line.count("==") == 1 and line[0] not in "#-")
