import pytest

from lada_ops.host.extras import require


def test_what_is_installed_is_not_asked_for():
    require("a test", "dev", "pytest")


def test_what_is_not_is_named_with_the_remedy():
    with pytest.raises(ImportError, match=r"a test needs no_such, not .*'lada-ops\[dev\]'"):
        require("a test", "dev", "pytest", "no_such")
