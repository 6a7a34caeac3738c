"""The machine code of the kernels, compiled and judged without a GPU."""
