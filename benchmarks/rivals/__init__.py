"""Whole encoders on the CPU, ours beside other runtimes, each in a process of its own.

``python -m benchmarks.rivals --help``. The runtimes come with ``pip install lada-ops[rivals]``;
missing ones are reported as not measured, with the reason.
"""
