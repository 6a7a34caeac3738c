"""The parts of `benchmarks/gpu_suite.py`: cases, the ways to compute them, clocks, results."""
