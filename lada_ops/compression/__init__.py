"""Compression of a whole model: statistics, plan, fit, and the swap of its linears."""
