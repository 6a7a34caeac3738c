"""Whole encoders on the CPU, in few native calls."""
