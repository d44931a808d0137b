"""What a built library promises every machine: torch's stable ABI and nothing else of it, old C libraries, all GPUs.

    python -m tests.wheel.audit dist/lightning_nerf-*.whl 80 86 89 90 100 120 ptx120

Prints what it found and exits with 1 where the wheel is not what its name says. Needs binutils, no GPU, no CUDA toolkit.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# libtorch's C shims are its stable ABI; whatever is mangled C++ of torch, at or c10 is not.
STABLE = re.compile(r"(aoti_torch|torch)_\w+")
TOOLCHAIN = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
LIBRARIES = {"libtorch.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
FATBIN, PTX = 0xBA55ED50, 1


def unstable_symbols(library: Path) -> list[str]:
    """Symbols that the library wants from elsewhere, other than the stable ABI's and versioned ones of the C libraries."""
    lines = _run("nm", "--dynamic", "--undefined-only", str(library)).splitlines()
    names = [line.split()[-1] for line in lines]
    return [n for n in names if "@" not in n and n not in TOOLCHAIN and not STABLE.fullmatch(n)]


def foreign_libraries(library: Path) -> list[str]:
    """Libraries that have to be there, other than the umbrella of torch and the C libraries."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _run("readelf", "--dynamic", str(library)))
    return sorted(set(needed) - LIBRARIES)


def glibc_floor(library: Path) -> tuple[int, int]:
    """The oldest glibc that has all symbols."""
    found = re.findall(r"GLIBC_(\d+)\.(\d+)", _run("nm", "--dynamic", str(library)))
    return max((int(major), int(minor)) for major, minor in found)


def architectures(library: Path) -> set[str]:
    """GPU architectures with machine code ("90") and with intermediate code ("ptx90") in the library."""
    content, found, at = library.read_bytes(), set(), 0
    magic = struct.pack("<I", FATBIN)
    while (at := content.find(magic, at)) >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", content, at)
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", content, entry)
            (arch,) = struct.unpack_from("<I", content, entry + 28)
            found.add(f"ptx{arch}" if kind == PTX else str(arch))
            entry += entry_header + entry_size
        at = end
    return found


def audit(wheel: Path, expected: set[str]) -> list[str]:
    """What is wrong with a wheel."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in Path(name).name]
        if libraries != ["lightning_nerf/_C.so"]:
            return [f"libraries: expected lightning_nerf/_C.so alone, got {libraries}"]
        library = Path(archive.extract(libraries[0], folder))
        floor, found = glibc_floor(library), architectures(library)
        print(f"{wheel.name}: glibc {floor[0]}.{floor[1]}, GPU architectures {' '.join(sorted(found))}")
        problems = [f"symbol outside of the stable ABI: {name}" for name in unstable_symbols(library)]
        problems += [f"needs {name}" for name in foreign_libraries(library)]
    tag = re.search(r"-py3-none-manylinux_(\d+)_(\d+)_x86_64", wheel.name)
    if tag is None:
        problems.append("tag: expected py3-none-manylinux_*_x86_64")
    elif floor > (int(tag[1]), int(tag[2])):
        problems.append(f"tag: {wheel.name} promises an older glibc than {floor}")
    if found != expected:
        problems.append(f"architectures: expected {sorted(expected)}, got {sorted(found)}")
    return problems


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    wrong = audit(Path(sys.argv[1]), set(sys.argv[2:]))
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)
