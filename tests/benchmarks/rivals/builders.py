"""Builders of fake contestants; light, since each process imports this module."""

import os
import threading

import numpy as np
import torch

from benchmarks.rivals.setup import Setup, package


def setup(build, **changes):
    given = {"weights": "", "exports": "", "threads": 1, "precision": "fp32", **changes}
    return Setup(f"tests.benchmarks.rivals.builders:{build}", **given)


def doubles(setup):
    return lambda ids: lambda: (ids * 2).astype(np.float32)


def chatters(setup):
    print("loading ...")
    os.system("echo from below")
    return doubles(setup)


def is_missing(setup):
    return package("a_package_that_nobody_has")


def raises_when_called(setup):
    def call():
        raise ValueError("odd shape\nwith a trace")

    return lambda ids: call


def dies(setup):
    os.write(2, b"out of luck\n")
    os._exit(3)


def tells_threads(setup):
    count = [torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])]
    return lambda ids: lambda: np.array(count, dtype=np.float32)


def spinning():
    """Keep a thread of this process busy; the returned function stops it."""
    ended = threading.Event()

    def spin():
        while not ended.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()

    def stop():
        ended.set()
        thread.join()

    return stop
