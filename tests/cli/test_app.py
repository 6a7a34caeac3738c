"""Application `lada`: version, help and errors."""

import subprocess
import sys
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from lada_cli import app
from lada_cli.app import Method, errors
from lada_ops.compression.plan import METHODS


def test_methods_are_those_of_a_plan():
    assert get_args(Method) == METHODS


def test_version_tells_what_it_runs_on():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("lada-ops ")
    assert "torch 2." in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["compress"]])
def test_help_waits_neither_for_torch_nor_for_our_own_package(args):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['lada', *{args!r}]\n"
        "try:\n"
        "    runpy.run_module('lada_cli', run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'torch', 'transformers', 'lada_ops'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_an_error_is_one_line(capsys):
    with pytest.raises(typer.Exit), errors():
        raise OSError("one\n  and two")
    assert capsys.readouterr().err == "error: one and two\n"
