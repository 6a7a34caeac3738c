"""Fakes: runners without a process, and contestants without a model."""

import numpy as np

from benchmarks.rivals.contestants import Contestant, Precision
from benchmarks.rivals.setup import NotMeasured
from benchmarks.rivals.worker import Contest

RIGHT = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)


def contestant(name: str, precision: Precision = "fp32") -> Contestant:
    return Contestant(name, "nobody:home", precision)


class FakeRunner:
    """Runner with given seconds per call, which appends its name to `log`."""

    def __init__(self, name, log=None, output=RIGHT, seconds=(1.0,), dies_after=None):
        self.name = name
        self.log = [] if log is None else log
        self.result = output
        self.seconds = list(seconds)
        self.dies_after = dies_after
        self.calls = 0

    def bind(self, inputs):
        self.log.append(("bind", self.name))

    def time(self, calls, warm=0):
        self.log.append(("time", self.name))
        if self.dies_after is not None and self.calls >= self.dies_after:
            raise NotMeasured("its process ended")
        self.calls += 1
        return [self.seconds[min(self.calls, len(self.seconds)) - 1]] * calls

    def output(self):
        return self.result


class LocalWorker(Contest):
    """Fake `Worker` that runs its contestant in this process."""

    def __init__(self, setup):
        super().__init__(setup.start())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
