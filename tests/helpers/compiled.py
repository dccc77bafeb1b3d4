"""Triton kernels compiled for GPUs that are not here, and what ptxas and nvdisasm (in triton's wheel) say of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

# CUDA C++ programming guide, technical specifications per compute capability, KiB: shared memory of a thread block and
# of a multiprocessor.
SHARED_KIB = {80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228)}
REGISTERS = 65_536  # of a multiprocessor
PRODUCT = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA"}


class Compiled:
    """One kernel as machine code."""

    def __init__(
        self,
        kernel: Any,
        arch: int,
        kinds: dict[str, str],
        constants: dict[str, object],
        options: dict[str, int],
        folder: Path,
    ) -> None:
        """Compile ``kernel`` for compute capability ``arch`` / 10.

        ``kinds`` of arguments that are no constants (else i32); pointers are aligned to 16 bytes, as torch's are.
        """
        triton = pytest.importorskip("triton")
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        known = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {n: "constexpr" if n in known else kinds.get(n, "i32") for n in kernel.arg_names}
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if kinds.get(n, "").startswith("*")
        }
        source = ASTSource(kernel, signature, constexprs=known, attrs=aligned)
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        self.arch = arch
        self.warps = options["num_warps"]
        self.shared = int(built.metadata.shared)
        tools = Path(triton.__path__[0]) / "backends/nvidia/bin"
        ptx, cubin = folder / "kernel.ptx", folder / "kernel.cubin"
        ptx.write_text(built.asm["ptx"])
        name = "sm_90a" if arch == 90 else f"sm_{arch}"
        said = _output([tools / "ptxas", "-v", "--gpu-name", name, ptx, "-o", cubin])
        self.spilled = int(re.search(r"(\d+) bytes spill stores", said)[1])  # type: ignore[index]
        self.registers = int(re.search(r"Used (\d+) registers", said)[1])  # type: ignore[index]
        self._lines = _output([tools / "nvdisasm", "-c", cubin]).splitlines()

    def programs(self) -> int:
        """Programs that a multiprocessor runs at a time."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        # the system keeps 1 KiB of shared memory a thread block
        return min(REGISTERS // registers, SHARED_KIB[self.arch][1] * 1024 // (self.shared + 1024))

    def loops(self) -> list[list[str]]:
        """Instructions of each loop that has a matrix product and no loop inside it, in the order of the code."""
        instructions, starts = self._code()
        bodies = []
        for end, text in enumerate(instructions):
            target = re.search(r"\bBRA.*?`\((\.L_\w+)\)", text)
            if target and starts.get(target[1], end + 1) <= end:
                bodies.append((starts[target[1]], end + 1))
        inner = [(a, b) for a, b in bodies if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in bodies)]
        found = [instructions[a:b] for a, b in inner]
        return [body for body in found if count(body, PRODUCT[self.arch])]

    def instructions(self) -> list[str]:
        return self._code()[0]

    def _code(self) -> tuple[list[str], dict[str, int]]:
        """The instructions, and the place of each label."""
        instructions: list[str] = []
        labels: dict[str, int] = {}
        for line in self._lines:
            if label := re.match(r"\s*(\.L_\w+):", line):
                labels[label[1]] = len(instructions)
            elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
                instructions.append(code[1].strip())
        return instructions, labels


def count(instructions: list[str], name: str) -> int:
    return sum(re.search(rf"\b({name})\b", text) is not None for text in instructions)


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    text = (Path(__file__).parents[2] / "constraints.txt").read_text()
    return re.search(rf"^{package}==([^;\s]+)", text, re.MULTILINE)[1]  # type: ignore[index]


def _output(command: list[Any]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
