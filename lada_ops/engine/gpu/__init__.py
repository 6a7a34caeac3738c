"""The GPU engine: layers of fused kernels, replayed from CUDA graphs."""
