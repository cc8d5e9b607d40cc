"""What GPU kernels need and move, shown without a GPU; all of it: ``python -m benchmarks.kernels``.

That no Triton kernel spills is in ``test_triton.py``.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from targets import CUDA_HOST

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY))  # for benchmarks, which are not installed

from benchmarks.kernels import cubin, cuda, interpreted, occupancy, report, traffic  # noqa: E402
from benchmarks.kernels.cubin import Usage  # noqa: E402
from benchmarks.kernels.traffic import Traffic  # noqa: E402
from gpm_core import ops  # noqa: E402

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# -- occupancy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "warps"),
    [(128, 48), (320, 40)],  # CUDA C++ Best Practices Guide, "Calculating Occupancy": 75 % and 63 %
)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_occupancy_as_published_for_37_registers(capability: int, threads: int, warps: int) -> None:
    assert occupancy.resident_warps(capability, threads, 37, 0) == warps


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "warps"),
    [
        (80, 256, 32, 0, 64),  # 65536 registers are 2048 threads of 32
        (80, 256, 33, 0, 48),  # 40 a thread: 12 warps on each of four partitions, 6 blocks of 8
        (80, 256, 128, 0, 16),
        (80, 256, 255, 0, 8),
        (80, 1024, 65, 0, 0),  # does not fit: 72 registers a thread are 28 warps
        (80, 32, 16, 0, 32),  # 32 blocks at most
        (80, 128, 32, 163 * 1024, 4),  # all that a block may have
        (90, 128, 32, 227 * 1024, 4),
        (90, 128, 32, 228 * 1024, 0),
        (80, 128, 32, 48 * 1024, 12),  # 49 KiB three times, 147 of 164
        (90, 128, 32, 48 * 1024, 16),  # four times, 196 of 228
        (100, 128, 32, 48 * 1024, 16),
        (90, 128, 32, 37 * 1024, 24),  # 38 KiB six times: exactly 228
        (90, 128, 32, 37 * 1024 + 1, 20),
    ],
)
def test_occupancy_by_hand(
    capability: int, threads: int, registers: int, shared: int, warps: int
) -> None:
    assert occupancy.resident_warps(capability, threads, registers, shared) == warps
    assert occupancy.occupancy(capability, threads, registers, shared) == warps / 64


# -- what cuobjdump says ---------------------------------------------------------------------------

DUMP = """
Fatbin elf code:
================
arch = sm_80
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN3gpm4cuda11sum_partialIfEEvNS0_11PartialSumsE:
  REG:21 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function other:
  REG:64 STACK:24 SHARED:0 LOCAL:8 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
================
arch = sm_100
 Function other:
  REG:32 STACK:0 SHARED:1040 LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_parses_resource_usage() -> None:
    first, second, third = cubin.parse(DUMP)
    assert (first.capability, first.usage) == (80, Usage(21, 0, 16, 0))
    assert (second.symbol, second.usage) == ("other", Usage(64, 24, 0, 8))
    assert second.usage.off_chip == 32
    # From sm_90 on the listing counts the KiB that the system keeps.
    assert (third.capability, third.usage) == (100, Usage(32, 0, 16, 0))


@pytest.mark.parametrize(
    ("symbol", "operation", "name", "dtype"),
    [
        (
            "_ZN3gpm4cuda11matrix_pullI6__halfNS0_11ProbabilityELi8ELb0EEEvNS_"
            "30CrossProbabilityMatrixBackwardE",
            "cross_probability_matrix_backward",
            "matrix_pull<8>",
            "float16",
        ),
        (
            "_ZN3gpm4cuda12matrix_tilesIdNS0_8RawScoreELb1EEEvNS_22CrossProbabilityMatrixE",
            "score_matrix",
            "matrix_tiles",
            "float64",
        ),
        (
            "_ZN3gpm4cuda14small_matricesI13__nv_bfloat16NS0_8RawScoreEEEvNS0_8TogetherINS_"
            "22CrossProbabilityMatrixEEE",
            "score_matrix, cross_score_matrix",
            "small_matrices",
            "bfloat16",
        ),
        (
            "_ZN3gpm4cuda24_GLOBAL__N__0a_normalize8backwardIfNS0_5LanesEEEvNS1_4WorkINS_"
            "17NormalizeBackwardEEE",
            "normalize_backward",
            "backward<Lanes>",
            "float32",
        ),
        (
            "_ZN3gpm4cuda12_GLOBAL__N__7forwardIfLi4EEEvNS_19PreferenceEmbeddingE",
            "preference_embedding",
            "forward<4>",
            "float32",
        ),
        (
            "_ZN3gpm4cuda12_GLOBAL__N__8backwardIfEEvNS1_8BackwardE",
            "preference_embedding_backward",
            "backward",
            "float32",
        ),
    ],
)
def test_reads_names_of_kernels(symbol: str, operation: str, name: str, dtype: str) -> None:
    assert cuda.kernel_of(symbol) == cuda.Kernel(operation, name, dtype)


def test_leaves_other_functions() -> None:
    assert cuda.kernel_of("_ZN2at6native6kernelIfEEvPT_") is None


# -- the compiled module ---------------------------------------------------------------------------


@cache
def usages() -> dict[cuda.Kernel, dict[int, Usage]]:
    return cuda.usages(cuda.module_path())


@pytest.fixture
def compiled() -> dict[cuda.Kernel, dict[int, Usage]]:
    try:
        return usages()
    except cubin.Missing as missing:
        pytest.skip(str(missing))


def test_no_cuda_kernel_spills(compiled: dict[cuda.Kernel, dict[int, Usage]]) -> None:
    bad = [
        (kernel, capability, usage)
        for kernel, found in compiled.items()
        for capability, usage in found.items()
        if usage.off_chip
    ]
    assert bad == []


@pytest.mark.parametrize("direction", ["", "_backward"])
@pytest.mark.parametrize("op", ops.__all__)
def test_kernels_for_all_dtypes_and_architectures(
    compiled: dict[cuda.Kernel, dict[int, Usage]], op: str, direction: str
) -> None:
    mine = {k: v for k, v in compiled.items() if op + direction in k.operation.split(", ")}
    assert {kernel.dtype for kernel in mine} == set(cuda.DTYPES.values())
    assert {frozenset(found) for found in mine.values()} == {frozenset(report.CAPABILITIES)}


@pytest.mark.usefixtures("compiled")
def test_later_gpus_can_compile_the_kernels() -> None:
    assert cubin.has_ptx(cuda.module_path())


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin.shutil, "which", lambda name: None)
    monkeypatch.setattr(cubin, "PLACES", ())
    monkeypatch.setattr(cubin, "find_spec", lambda name: None)
    with pytest.raises(cubin.Missing, match="install a CUDA toolkit"):
        cubin.cuobjdump()


# -- traffic ---------------------------------------------------------------------------------------


@cache
def measured(dtype: torch.dtype) -> tuple[list[Traffic], dict[cuda.Kernel, traffic.Launch]]:
    CUDA_HOST.need()
    traffics, launches = [], {}
    for one, made in traffic.measure(dtype):
        traffics.append(one)
        launches.update(made)
    return traffics, launches


def most_moved(one: Traffic) -> float:
    """Bytes between L2 and multiprocessors over the least, that the design explains."""
    if one.operation == "preference_embedding":
        # Blocks read the weight: for one row of 64 (8 outputs to a row), four of 512.
        return 1 + 8 / (4 if one.size.startswith("512") else 1)
    if one.operation == "preference_embedding_backward":
        # A block of the weight's gradient reads those of all rows besides the hidden states.
        return 1.5
    if "matrix" not in one.operation or "16 x 16" in one.size:
        return 1.01  # blocks share nothing
    width = int(one.size.split("d = ")[1].split(",")[0])
    edges = 1.2 if "300" in one.size else 1  # tiles that are not full, rows within a sector
    if one.operation.endswith("_backward"):
        # The gradient for its row and for its column, for each 64 columns of embeddings, and 64
        # embeddings for a tile of 64 x 64.
        return 2 * math.ceil(width / 64) * (1 + width / 64) * edges
    # 128 embeddings for 64 x 64 results, or twice as many.
    results = 4096 if one.operation.startswith("cross") else 8192
    return (1 + 128 * width / results) * edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_kernels_move_little_more_than_they_must(dtype: torch.dtype) -> None:
    for one in measured(dtype)[0]:
        # More than all operands once: only sums on their way to a second step.
        assert 1 <= one.distinct / one.least <= 1.03, one
        assert one.moved / one.least <= most_moved(one), one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neighbouring_threads_ask_for_neighbours(dtype: torch.dtype) -> None:
    for one in measured(dtype)[0]:
        assert one.spread <= 2, one


def test_cases_launch_every_cuda_kernel(compiled: dict[cuda.Kernel, dict[int, Usage]]) -> None:
    launched = {kernel for dtype in DTYPES for kernel in measured(dtype)[1]}
    assert launched == set(compiled)


def test_counts_traffic_of_triton_kernels() -> None:
    pytest.importorskip("triton")
    found = interpreted.measure(torch.float32, "score", "score_backward")
    assert {one.operation for one in found} == {"score", "score_backward"}
    for one in found:
        assert one.distinct == one.moved == one.least, one


# -- the document ----------------------------------------------------------------------------------

ROW = report.Row(("score", "forward", "float32"), 128, {80: Usage(32, 0, 20640, 0)})
TRAFFIC = Traffic("score", "3 x 4", "float32", 64, 64, 96, 2, 4, 128)


def document(versions: str, row: report.Row = ROW, one: Traffic = TRAFFIC) -> str:
    return report.document(versions, {"CUDA": [row]}, {"CUDA": [one]})


def test_tables_can_be_read_back() -> None:
    summary, resources, moved = report.tables(document("CUDA 1.0"))
    assert summary[0]["occupancy, %"] == "at least 44"
    assert resources == [
        {
            "operation": "score",
            "kernel": "forward",
            "dtype": "float32",
            "threads": "128",
            "shared, bytes": "20,640",
            "registers": "32",
            "off-chip, bytes": "0",
            "occupancy, %": "44",
        }
    ]
    assert (moved[0]["memory"], moved[0]["L2"]) == ("1.00", "1.50")
    assert (moved[0]["sectors a request"], moved[0]["spread"]) == ("2.0", "1.00")


def test_names_kernels_that_spill() -> None:
    spilled = report.Row(ROW.labels, 128, {80: Usage(32, 8, 0, 0)})
    assert report.off_chip([ROW]) == []
    assert report.off_chip([spilled]) == [
        "score forward float32 on sm_80: 8 bytes of stack, 0 of local memory"
    ]


def test_other_compilers_may_use_other_registers() -> None:
    kept = document("CUDA 1.0")
    other = report.Row(ROW.labels, 128, {80: Usage(40, 0, 20640, 0)})
    assert not report.is_stale(kept, kept)
    assert report.is_stale(kept, document("CUDA 1.0", other))
    assert not report.is_stale(kept, document("CUDA 2.0", other))
    threads = report.Row(ROW.labels, 256, ROW.usages)
    assert report.is_stale(kept, document("CUDA 2.0", threads))
    moved = Traffic("score", "3 x 4", "float32", 64, 64, 128, 2, 4, 128)
    assert report.is_stale(kept, document("CUDA 2.0", one=moved))


def kept_tables(column: str) -> list[list[dict[str, str]]]:
    """The tables of docs/kernels.md with such a column."""
    text = (REPOSITORY / "docs" / "kernels.md").read_text()
    return [table for table in report.tables(text) if column in table[0]]


def test_the_kept_document_has_no_spills() -> None:
    tables = kept_tables(report.OFF_CHIP)
    assert len(tables) == 3
    assert {row[report.OFF_CHIP] for table in tables for row in table} == {"0"}


def test_the_kept_document_has_the_traffic_of_these_sources() -> None:
    now = measured(torch.float32)[0] + measured(torch.bfloat16)[0]
    assert kept_tables("spread") == list(report.tables(report.traffic(now) + "\n"))
