"""The processor's name, and those of its features that engines care for."""

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SYSCTL_S_MAX: Final = 5.0
NAME_CHARS_MAX: Final = 200
CPUINFO_CHARS_MAX: Final = 65_536

# As /proc/cpuinfo spells them -> as llama.cpp and oneDNN do.
_LINUX: Final = {
    "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c",
    "avx512f": "avx512f", "avx512_bf16": "avx512_bf16", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni",
    "amx_tile": "amx_tile", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
    "asimd": "neon", "neon": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
}  # fmt: skip
_DARWIN: Final = {
    "hw.optional.avx2_0": "avx2", "hw.optional.avx512f": "avx512f", "hw.optional.AdvSIMD": "neon",
    "hw.optional.neon": "neon", "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_BF16": "bf16",
}  # fmt: skip
# IsProcessorFeaturePresent, winnt.h
_WINDOWS: Final = {39: "avx", 40: "avx2", 41: "avx512f", 19: "neon", 43: "dotprod"}


def cpu() -> tuple[str, tuple[str, ...]]:
    """Name and features; what cannot be found out is left out."""
    name, features = _here()
    return name or (platform.processor() or platform.machine())[:NAME_CHARS_MAX], features


def from_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The first processor of a /proc/cpuinfo; a Raspberry Pi names itself in its last line."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip().lower(), value.strip())
    name = found.get("model name") or found.get("model") or found.get("hardware") or ""
    flags = found.get("flags") or found.get("features") or ""
    words = set(flags.split())
    return name[:NAME_CHARS_MAX], _known(word for flag, word in _LINUX.items() if flag in words)


def _known(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(words)))


if sys.platform == "win32":
    import ctypes

    def _here() -> tuple[str, tuple[str, ...]]:
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return "", _known(word for number, word in _WINDOWS.items() if present(number))

elif sys.platform == "darwin":

    def _here() -> tuple[str, tuple[str, ...]]:
        features = _known(word for name, word in _DARWIN.items() if _sysctl(name) == "1")
        return _sysctl("machdep.cpu.brand_string"), features

    def _sysctl(name: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_S_MAX, check=True)
            return done.stdout.strip()[:NAME_CHARS_MAX]
        return ""

else:

    def _here() -> tuple[str, tuple[str, ...]]:
        text = ""
        with (
            contextlib.suppress(OSError),
            Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file,
        ):
            text = file.read(CPUINFO_CHARS_MAX)
        return from_cpuinfo(text)
