"""How many warps of a kernel a multiprocessor can hold.

Limits and granularities are those of NVIDIA's "CUDA C++ Programming Guide", technical
specifications per compute capability, and of its occupancy calculator; the KiB of shared memory
that the system keeps of each block is in the tuning guide of each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks of a multiprocessor share."""

    shared: int  # bytes
    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    # A warp stays on one of four partitions and gets registers in units.
    partitions: int = 4
    register_unit: int = 256
    shared_unit: int = 128
    shared_of_system: int = 1024  # bytes of each block


#: By compute capability.
MULTIPROCESSORS = {
    80: Multiprocessor(shared=164 * 1024),
    90: Multiprocessor(shared=228 * 1024),
    100: Multiprocessor(shared=228 * 1024),
}


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def resident_warps(capability: int, threads: int, registers: int, shared: int) -> int:
    """The most warps that are resident together.

    Args:
        capability: 80 for 8.0, and so on.
        threads: Of a block.
        registers: Of a thread.
        shared: Bytes of a block, static and dynamic.
    """
    sm = MULTIPROCESSORS[capability]
    warps = -(-threads // WARP)
    of_a_warp = _round_up(registers * WARP, sm.register_unit)
    by_registers = sm.registers // sm.partitions // of_a_warp * sm.partitions // warps
    by_shared = sm.shared // _round_up(shared + sm.shared_of_system, sm.shared_unit)
    return min(sm.blocks, sm.warps // warps, by_registers, by_shared) * warps


def occupancy(capability: int, threads: int, registers: int, shared: int) -> float:
    """Resident warps over the most that a multiprocessor can hold."""
    return (
        resident_warps(capability, threads, registers, shared) / MULTIPROCESSORS[capability].warps
    )
