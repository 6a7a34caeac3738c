"""Machine code of the shipped kernels, compiled and checked without a GPU."""
