"""What the document says around its tables."""

#: How the line begins that names the compilers.
VERSIONS = "Compiled by "

INTRODUCTION = """\
# What the GPU kernels need and move

`python -m benchmarks.kernels --output docs/kernels.md` writes this file, without a GPU. `--check`
fails if a kernel uses local memory or the file is out of date. Nothing here is a measured time.

**Resources** are what the assembler assigned, as `cuobjdump --dump-resource-usage` reads it from
the machine code: registers of a thread, shared memory of a block (static, and asked for at the
launch), and *off-chip*, the stack and local memory of a thread. Registers that do not fit are
spilled to the stack, so off-chip 0 means that nothing is spilled. Three numbers are for sm_80,
sm_90 and sm_100; one is for all of them.

**Occupancy** is the share of a multiprocessor's warps that can be resident together:

    warps         = ceil(threads / 32)
    by registers  = floor(floor(65536 / 4 / roundup(32 registers, 256)) 4 / warps)
    by shared     = floor(shared of a multiprocessor / roundup(shared of a block + 1 KiB, 128 B))
    blocks        = min(32, floor(64 / warps), by registers, by shared)
    occupancy     = blocks warps / 64

A warp belongs to one of four partitions, each with a quarter of the registers. A multiprocessor
has 164 KiB of shared memory for its blocks on sm_80, 228 KiB on sm_90 and sm_100, and the system
keeps 1 KiB of each block. The numbers are those of NVIDIA's CUDA C++ Programming Guide ("Technical
Specifications per Compute Capability") and of the tuning guides. Threads and shared memory of CUDA
kernels are those of the launches listed under traffic.

**Traffic** is counted while the kernels run on the processor: the unmodified CUDA sources on the
stand-in for a GPU in `tests/cuda_host`, the Triton kernels in its interpreter.

- *least*: each number that is needed read once, each number of the results written once.
- *memory*: all 32-byte sectors that are touched, each counted once, over the least. What memory
  moves if the L2 cache holds what blocks share.
- *L2*: the sectors that each block touches, added up, over the least. What passes between L2 and
  multiprocessors if L1 holds what a block uses again.
- *sectors a request*: of 32 threads that read or write at once. 128 bits a thread are 16 sectors.
- *spread*: the sectors of all requests over the bytes that threads ask for. 1 where neighbours ask
  for neighbours; less where several ask for the same; more where the rest of a sector is left to
  other requests, which find it in L1.
"""

MORE_THAN_LEAST = """\
Where L2 is above the least, blocks share operands:

- All pairs, forward: a tile of 64 x 64 pairs reads 128 embeddings.
- All pairs, backward: a block sums the gradients of the rows that it owns, so that no sum depends
  on the order of blocks. So each incoming gradient is read twice, for its row and for its column,
  and again for each part of embeddings that are wider than what a block sums.
- `preference_embedding`: each block reads the weight, and its rows are few, to use all
  multiprocessors. Backward, each block also reads the gradients and projections of its rows.
"""
