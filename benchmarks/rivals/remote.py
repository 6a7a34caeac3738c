"""Worker processes of contestants, seen from the parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .setup import NotMeasured, Setup

ROOT = Path(__file__).parents[2]


class Worker:
    """Contestant in a process of its own; a context manager that ends the process.

    The constructor and all methods raise NotMeasured if it cannot run or has died.
    """

    def __init__(self, setup: Setup) -> None:
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # thread pools read these once, when they start
            "OMP_NUM_THREADS": str(setup.threads),
            "MKL_NUM_THREADS": str(setup.threads),
            # with the default of 300,000 spins, torch's pool is up to ten times slower while
            # another process wants a core, and a few per cent faster on an idle machine
            "GOMP_SPINCOUNT": "1000",
        }
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.rivals.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment,
                text=True,
            )
        try:
            self._ask(**asdict(setup))
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def bind(self, inputs: Path) -> None:
        """Set the inputs of all further calls: token ids (batch, length) in a .npy file."""
        self._ask(do="bind", inputs=str(inputs))

    def time(self, calls: int, warm: int = 0) -> list[float]:
        """Seconds of each of `calls` calls, after `warm` untimed ones."""
        return self._ask(do="time", calls=calls, warm=warm)

    def output(self) -> Any:
        """Output of the last call, as a numpy array in fp32."""
        file = Path(self._folder.name) / "output.npy"
        self._ask(do="save", file=str(file))
        return np.load(file)

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **order: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise NotMeasured(f"its process ended: {self._last_words()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise NotMeasured(answer["failed"])
        return answer["done"]

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self._errors.read_text(errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"exit status {code}. {said}"[:300]
