"""Whole encoders on the CPU, ours beside every rival, each in a process of its own.

``python -m benchmarks.rivals --help``. The rivals come with ``pip install lada-ops[rivals]``; one
that is missing is reported as not measured, with the reason.
"""
