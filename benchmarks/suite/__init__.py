"""Parts of `benchmarks/gpu_suite.py`: cases, their implementations, measurement, results."""
