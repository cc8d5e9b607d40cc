"""Registers, shared memory, spills, occupancy and traffic of every kernel, without a GPU.

``python -m benchmarks.kernels`` prints Markdown; ``--output docs/kernels.md`` keeps it there, and
``--check`` compares it with what is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.kernels import compiled, cubin, cuda, interpreted, report, traffic
from benchmarks.kernels.traffic import Launch, Traffic

KEPT = traffic.ROOT / "docs" / "kernels.md"
#: What traffic is shown of.
SHOWN = ("float32", "bfloat16")


def _toolkit(module: Path) -> str:
    spec = importlib.util.spec_from_file_location("_C", module)
    if spec is None or spec.loader is None:
        raise cubin.Missing(f"{module} is not a Python module")
    loaded: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return str(loaded.build_info()["cuda"])


def _cuda(module: Path) -> tuple[list[report.Row], list[Traffic]]:
    launches: dict[cuda.Kernel, set[Launch]] = {}
    traffics = []
    for dtype in compiled.DTYPES:
        for found, made in traffic.measure(dtype):
            for kernel, launch in made.items():
                launches.setdefault(kernel, set()).add(launch)
            if found.dtype in SHOWN:
                traffics.append(found)
    return report.cuda_rows(cuda.usages(module), launches), traffics


def _document(module: Path, processes: int) -> tuple[str, list[str]]:
    """The document, and the kernels that use local memory."""
    try:
        import triton
    except ImportError as error:
        raise cubin.Missing(f"{error}: the Triton kernels need it, no GPU") from None
    rows, traffics = _cuda(module)
    of_triton = report.triton_rows(compiled.usages(processes=processes))
    versions = f"CUDA {_toolkit(module)} and Triton {triton.__version__}"
    text = report.document(
        versions,
        {"CUDA": rows, "Triton": of_triton},
        {"CUDA": traffics, "Triton": interpreted.measure_all(processes)},
    )
    return text, report.off_chip([*rows, *of_triton])


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument(
        "--module", type=Path, help="a compiled module with CUDA kernels; default: gpm_core._C"
    )
    parser.add_argument(
        "--output", type=Path, help="where to write the tables instead of printing them"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail if kernels use local memory, or docs/{KEPT.name} is out of date",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many at a time")
    options = parser.parse_args()
    try:
        module = options.module or cuda.module_path()
        cuda.usages(module)  # before what takes minutes
        text, bad = _document(module, options.processes)
    except cubin.Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    if options.output is not None:
        _write(options.output, text)
    elif not options.check:
        print(text, end="")
    for line in bad:
        print(f"off-chip: {line}", file=sys.stderr)
    stale = options.check and (not KEPT.exists() or report.is_stale(KEPT.read_text(), text))
    if stale:
        print(
            f"docs/{KEPT.name} does not show these kernels: compile the module (pip install -e .) "
            f"if csrc/cuda is newer, then --output docs/{KEPT.name}",
            file=sys.stderr,
        )
    return int(options.check and (bool(bad) or stale))


if __name__ == "__main__":
    sys.exit(main())
