"""Helpers of the property tests: the number of examples, and JSON with something wrong."""

import copy
import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# none of them a value that any reader expects
WRONG = [
    *(None, True, -1, 0, 10**400, -(10**400), 1e999, -1e999, float("nan"), 5e-324, 0.5),
    *("", "1", "\ud800", [], {}, [1, 2, 3], [[]], {"": 0}),
]
DEEP = b"[" * 100_000
NO_JSON = [b"", b"{", b"\xff{}", b'{"a": 1', b"nan", b"1 2", DEEP, b'{"a": ' * 100_000]


def places(content):
    """The paths to everything in `content`: tuples of keys and indices."""
    found = [()]
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in inner:
        found += [(key, *rest) for rest in places(value)]
    return found


@st.composite
def damaged(draw, content):
    """`content` with one thing in it left out, added, or replaced by a wrong value."""
    content = copy.deepcopy(content)
    *way, last = draw(st.sampled_from([place for place in places(content) if place]))
    holder = content
    for key in way:
        holder = holder[key]
    what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if what == "remove":
        del holder[last]
    elif what == "replace":
        holder[last] = draw(st.sampled_from(WRONG))
    elif isinstance(holder, dict):
        holder[draw(st.sampled_from(["", "more", "ratio"]))] = draw(st.sampled_from(WRONG))
    else:
        holder.append(draw(st.sampled_from(WRONG)))
    return content


def same(a, b):
    """True if JSON values are equal in type and value."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
