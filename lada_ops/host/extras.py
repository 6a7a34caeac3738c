"""Optional packages, looked for before the work that needs them begins."""

from __future__ import annotations

from importlib.util import find_spec


def require(what: str, extra: str, *packages: str) -> None:
    """Raise ImportError, with the remedy, unless all `packages` are installed.

    what: the work that needs them. extra: the extra of lada-ops that brings them. packages: their
    names in an import.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{what} needs {', '.join(missing)}, not installed here: "
            f"pip install 'lada-ops[{extra}]'"
        )
