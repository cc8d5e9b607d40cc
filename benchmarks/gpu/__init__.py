"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu``.

Tests, sanitizers and speed, written to one JSON and one Markdown file. In an environment with

    pip install torch                                   # a CUDA build; it brings triton
    GPM_CORE_BUILD=cuda pip install -e ".[train,test]"  # needs nvcc

What does not need a GPU is rehearsed on the processor in ``tests/test_bench_gpu.py``, and by hand
with ``--device cpu``; the numbers are the processor's then, and the files say so.
"""
