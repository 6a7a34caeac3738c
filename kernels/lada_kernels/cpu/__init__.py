"""Native kernels for the CPU behind a plain C interface, and their loader."""
