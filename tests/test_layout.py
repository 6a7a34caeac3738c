"""The architecture, asserted: who may import whom, every stem in every room, no giant files."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND_LINE = "lada_ops/cli"  # a source root, not a package of lada_ops
FOLDERS = ["kernels", "lada_ops", COMMAND_LINE, "benchmarks", "tests"]
STEMS = ["low_rank_linear", "block_sparse_linear", "sparse_low_rank_linear", "low_rank_ffn"]
ROOMS = [
    "kernels/lada_kernels/{}.py",
    "lada_ops/ops/{}.py",
    "lada_ops/modules/{}.py",
    "tests/ops/test_{}.py",
    "tests/modules/test_{}.py",
    "tests/kernels/test_{}.py",
    "benchmarks/bench_{}.py",
]
FIRST_PARTY = {"lada_kernels", "lada_ops", "lada_cli", "benchmarks", "tests", "kernels"}
PACKAGES = {  # folder -> first-party packages its files may import
    "kernels/lada_kernels": {"lada_kernels"},
    "lada_ops": {"lada_kernels", "lada_ops"},
    COMMAND_LINE: {"lada_ops", "lada_cli"},
    "benchmarks": {"lada_kernels", "lada_ops", "lada_cli", "benchmarks"},
}
ARROWS = {  # room of lada_ops -> rooms it may import besides itself
    "formats": "",
    "host": "",
    "machine_code": "",
    "data": "",
    "approximation": "formats",
    "ops": "formats host",
    "modules": "approximation formats ops host",
    "architectures": "modules",
    "engine": "architectures formats host modules ops",
    "compression": "approximation architectures data engine formats host modules",
    "latency": "architectures compression engine host modules",
    "tune": "approximation engine formats host latency machine_code modules ops",
    "distill": "approximation architectures compression data engine formats host latency modules",
    "evaluate": "architectures compression data formats host latency modules",
    "demo": "architectures compression data engine evaluate host latency",
}


def files(folder):
    found = sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)
    inner = ROOT / COMMAND_LINE
    return [p for p in found if folder.startswith(COMMAND_LINE) or not p.is_relative_to(inner)]


def imports(path, top_level=False):
    """Full names of the modules a file imports, or only those it imports when it is imported.

    What only a type checker imports is no import of the latter kind.
    """
    roots = (ROOT / "kernels", ROOT / COMMAND_LINE, ROOT)
    root = next(root for root in roots if path.is_relative_to(root))
    package = path.relative_to(root).parts[:-1]
    found = set()
    tree = ast.parse(path.read_text())
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if top_level and node in lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(path):
    """The room of lada_ops that a file belongs to: `ops` for lada_ops/ops/epilogue.py."""
    return path.relative_to(ROOT / "lada_ops").with_suffix("").parts[0]


def run(program, first=None):
    """The output of a Python program started in our root, with the folder `first` on its path."""
    paths = [first, ROOT / "kernels"] if first else [ROOT / "kernels"]
    path = os.pathsep.join(map(str, paths))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", PACKAGES)
def test_packages_import_one_way(folder):
    for path in files(folder):
        used = {name.split(".")[0] for name in imports(path)} & FIRST_PARTY
        assert used <= PACKAGES[folder], path


def test_every_file_of_lada_ops_is_in_a_room():
    assert {room_of(path) for path in files("lada_ops")} == {"__init__", *ARROWS}


@pytest.mark.parametrize("room", ARROWS)
def test_rooms_import_one_way(room):
    for path in files("lada_ops"):
        if room_of(path) == room:
            used = {n.split(".")[1] for n in imports(path) if n.startswith("lada_ops.")}
            assert used - {room} <= set(ARROWS[room].split()), path


def test_kernels_are_imported_when_they_are_called():
    for path in files("lada_ops"):
        used = {name.split(".")[0] for name in imports(path, top_level=True)}
        assert not used & {"triton", "lada_kernels"}, path


def test_the_command_line_loads_what_is_slow_when_a_command_runs():
    for path in files(COMMAND_LINE):
        used = {name.split(".")[0] for name in imports(path, top_level=True)}
        assert not used & {"torch", "transformers", "lada_ops"}, path


def test_kernels_need_numpy_torch_and_triton_alone():
    allowed = {"numpy", "torch", "triton", "lada_kernels", *sys.stdlib_module_names}
    for path in files("kernels"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_is_whole(stem, room):
    assert (ROOT / room.format(stem)).is_file()


@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_has_its_names(stem):
    import lada_ops
    from lada_ops.ops import reference

    module = stem.replace("_", "")  # LowRankLinear, LowRankFFN
    assert callable(getattr(reference, f"{stem}_ref"))
    assert {stem, module} <= {name.lower() for name in lada_ops.__all__}


def test_every_op_is_a_stem_but_what_follows_a_product():
    ops = {path.stem for path in files("lada_ops/ops")}
    shared = {"checks", "dispatch", "epilogue", "reference", "tracing"}
    assert ops == {*STEMS, "__init__", "add_norm", *shared}


@pytest.mark.parametrize(
    "package", ["lada_ops", "lada_ops.distill", "lada_ops.evaluate", "lada_ops.latency"]
)
def test_public_names_are_there(package):
    module = importlib.import_module(package)
    assert module.__all__
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_functions_are_not_hidden_by_modules_of_their_name():
    program = (
        "import importlib, pkgutil, lada_ops\n"
        "for m in pkgutil.walk_packages(lada_ops.__path__, 'lada_ops.'):\n"
        "    if m.name not in ('lada_ops.demo', 'lada_ops.latency.plots'):\n"
        "        importlib.import_module(m.name)\n"
        "from lada_ops.approximation.svd import truncated_svd\n"
        "print(type(lada_ops.compress).__name__, type(lada_ops.plan).__name__)\n"
    )
    assert run(program) == "function function"


def test_no_file_over_350_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in FOLDERS
        for path in files(folder)
        if (lines := len(path.read_text().splitlines())) > 350
    }
    assert long == {}


def test_set_up_names_every_package():
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg == "packages"
    )
    roots = {"lada_cli": COMMAND_LINE, "lada_kernels": "kernels", "lada_ops": "."}
    want = {
        ".".join(path.parent.relative_to(ROOT / root).parts)
        for name, root in roots.items()
        for path in files(f"{root}/{name}")
        if path.name == "__init__.py"
    }
    assert set(ast.literal_eval(call.value)) == want


def test_every_folder_of_modules_is_a_package():
    for folder in ("lada_ops", f"{COMMAND_LINE}/lada_cli", "kernels/lada_kernels"):
        for path in files(folder):
            assert (path.parent / "__init__.py").is_file(), path


class TestKernelsName:
    """Hugging Face ships an import package `kernels`, which our source root must never hide."""

    # what transformers imports from it when it is installed in the right version
    FAKE = (
        "class Meta(type):\n"
        "    def __getattr__(cls, name): return cls()\n"
        "class Anything(metaclass=Meta):\n"
        "    def __init__(self, *args, **kwargs): pass\n"
        "    def __call__(self, decorated=None, *args, **kwargs): return decorated\n"
        "    def __or__(self, other): return self\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return Anything\n"
    )

    @pytest.fixture
    def hugging_faces(self, tmp_path):
        """A folder to put first on the path, with a package `kernels` as pip installs it."""
        from transformers.utils.import_utils import KERNELS_MIN_VERSION

        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels/__init__.py").write_text(self.FAKE)
        info = tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
        (info / "RECORD").write_text("kernels/__init__.py,,\n")
        return tmp_path

    @pytest.mark.parametrize("root", ["kernels", COMMAND_LINE])
    def test_our_root_is_no_package(self, root):
        assert not (ROOT / root / "__init__.py").exists()

    def test_the_name_is_never_a_file_of_ours(self):
        program = (
            "import importlib.util\n"
            "spec = importlib.util.find_spec('kernels')\n"
            "print(spec and spec.origin)\n"  # theirs where it is installed, else None
        )
        assert not Path(run(program)).is_relative_to(ROOT / "kernels")

    @pytest.mark.exhaustive
    def test_transformers_works_beside_us(self):
        program = "import transformers.modeling_utils, lada_kernels, lada_ops; print('fine')"
        assert run(program) == "fine"

    def test_theirs_is_the_one_that_is_imported(self, hugging_faces):
        program = "import kernels; print(kernels.__file__)"
        assert run(program, first=hugging_faces) == str(hugging_faces / "kernels/__init__.py")

    def test_theirs_wins_from_wherever_it_is_on_the_path(self, hugging_faces):
        program = (
            f"import sys; sys.path.append({str(hugging_faces)!r})\n"
            "import kernels; print(kernels.__file__)"
        )
        found = Path(run(program))  # another, where one is installed already
        assert found.name == "__init__.py"
        assert not found.is_relative_to(ROOT / "kernels")

    def test_transformers_uses_theirs_beside_us(self, hugging_faces):
        program = (
            "import lada_ops, lada_kernels.tuning, transformers\n"
            "from transformers.utils.import_utils import is_kernels_available\n"
            "from transformers.models.bert.modeling_bert import BertModel\n"
            "print(is_kernels_available())\n"
        )
        assert run(program, first=hugging_faces) == "True"

    @pytest.mark.exhaustive
    def test_pytest_starts_with_theirs(self, hugging_faces):
        program = (
            "import sys, pytest\n"
            "code = pytest.main(['-q', '--collect-only', 'tests/ops/test_reference.py'])\n"
            "import kernels; print(kernels.__file__); sys.exit(code)\n"
        )
        got = run(program, first=hugging_faces).splitlines()[-1]
        assert got == str(hugging_faces / "kernels/__init__.py")
