"""What kernels need and move, known without a GPU: ``python -m benchmarks.kernels``."""
