"""Whole encoders in few calls: native ones on the CPU, fused layers on a GPU."""
