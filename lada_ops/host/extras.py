"""Optional packages: a check before the work that needs them."""

from __future__ import annotations

from importlib.util import find_spec


def require(what: str, extra: str, *packages: str) -> None:
    """Raise ImportError, with the pip command that helps, unless all `packages` are installed.

    what: name of the work that needs them. extra: extra of lada-ops that installs them. packages:
    import names.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{what} needs {', '.join(missing)}, not installed here: "
            f"pip install 'lada-ops[{extra}]'"
        )
