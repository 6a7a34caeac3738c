import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given

from lada_kernels import tuning
from lada_kernels.table import Measured, Table, TableError
from lada_kernels.variants import TileConfig
from tests.kernels.tables import DEVICE, KEY, STEM, TILES, table, with_entry, write
from tests.properties import FEW, NO_JSON, damaged, same


@pytest.fixture
def content():
    return table(dense=60.0, one_launch=(30.0, TILES)).to_dict()


def test_what_is_written_is_what_is_read(tmp_path):
    made = table(dense=60.0, one_launch=(30.0, TILES))
    with_entry(made, 64, KEY._replace(weight="r64x3"), dense=5.5, two_launches=4.0)
    assert Table.read(write(made, tmp_path), STEM, DEVICE, tuning.TRITON) == made


def test_the_file_does_not_depend_on_the_order_of_measuring():
    entries = [(2048, {"dense": 60.0}), (64, {"dense": 5.0})]
    made, reverse = (Table(STEM, DEVICE, tuning.TRITON) for _ in range(2))
    for tokens, variants in entries:
        with_entry(made, tokens, KEY, **variants)
    for tokens, variants in entries[::-1]:
        with_entry(reverse, tokens, KEY, **variants)
    assert made.to_dict() == reverse.to_dict()


def test_entries_of_two_environments_know_their_own():
    made = table(dense=60.0)
    made.add(KEY, 64, {"dense": Measured(5.0)}, {"gpu": "NVIDIA H200", "gpu_driver": "1"})
    made.add(KEY, 32, {"dense": Measured(5.0)}, {"gpu": "NVIDIA H200"})
    assert len(made.environments) == 2
    assert {m: e.environment for m, e in made.entries[KEY].items()} == {2048: 0, 64: 1, 32: 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(format=2), "format is 2; expected 1"),
        (lambda c: c.update(stem="other"), "stem is 'other'"),
        (lambda c: c.update(device="T4"), "device is 'T4'; expected 'NVIDIA_H200'"),
        (lambda c: c.update(triton="2.1"), "triton is '2.1'"),
        (lambda c: c.pop("environments"), "the table has {"),
        (lambda c: c.update(more=1), "the table has {"),
        (lambda c: c.update(format=True), "format is True; expected 1"),
        (lambda c: c.update(environments={}), "environments is not a list"),
        (lambda c: c["environments"][0].update(gpu=float("nan")), "environments is not a list"),
        (lambda c: c["environments"][0].update(gpu=[]), "environments is not a list"),
        (lambda c: c.update(entries={}), "entries is not a list"),
        (lambda c: c["entries"].append(7), "entry 1 has int"),
        (lambda c: c["entries"].append(c["entries"][0]), "entry 1 is there twice"),
        (lambda c: c["entries"][0].pop("k"), "entry 0 has {"),
        (lambda c: c["entries"][0].update(more=1), "entry 0 has {"),
        (lambda c: c["entries"][0].update(k="768"), "entry 0: k is '768'"),
        (lambda c: c["entries"][0].update(n=True), "entry 0: n is True"),
        (lambda c: c["entries"][0].update(tokens=100), "entry 0: tokens is 100"),
        (lambda c: c["entries"][0].update(dtype="int8"), "entry 0: dtype is 'int8'"),
        (lambda c: c["entries"][0].update(epilogue=[]), "entry 0: epilogue is []"),
        (lambda c: c["entries"][0].update(weight=128), "entry 0: weight is 128"),
        (lambda c: c["entries"][0].update(weight="x"), "weight 'x'; expected such as"),
        (lambda c: c["entries"][0].update(weight="r100"), "weight is 'r100', of low_rank_linear"),
        (lambda c: c["entries"][0].update(weight="r\u0661"), "expected such as"),
        (lambda c: c["entries"][0].update(weight="128x16-d20"), "of block_sparse_linear"),
        (lambda c: c["entries"][0].update(environment=1), "entry 0: environment is 1"),
        (lambda c: c["entries"][0].update(ways=[]), "entry 0: ways is not an object"),
        (lambda c: c["entries"][0]["ways"].pop("dense"), "no 'dense' to compare with"),
        (lambda c: c["entries"][0]["ways"].update(magic={"us": 1}), "way 'magic'"),
        (lambda c: c["entries"][0]["ways"].update(split=1), "split is not an object"),
        (lambda c: c["entries"][0]["ways"]["dense"].update(us=0), "dense: us is 0"),
        (lambda c: c["entries"][0]["ways"]["dense"].update(us=float("nan")), "us is nan"),
        (lambda c: c["entries"][0]["ways"]["dense"].update(us="1"), "us is '1'"),
        (lambda c: c["entries"][0]["ways"]["dense"].update(tiles={}), "tiles has set()"),
        (lambda c: c["entries"][0]["ways"]["dense"].update(tiles=[]), "tiles is not an object"),
        (
            lambda c: c["entries"][0]["ways"]["one_launch"]["tiles"].update(BLOCK_M=48),
            "one_launch: BLOCK_M is 48; expected a power of two",
        ),
        (
            lambda c: c["entries"][0]["ways"]["one_launch"]["tiles"].update(num_stages=0),
            "one_launch: num_stages is 0; expected a positive integer",
        ),
        *(
            (
                lambda c, name=name, size=size: c["entries"][0]["ways"]["one_launch"][
                    "tiles"
                ].update({name: size}),
                f"one_launch: {name} is {size}; expected {least} to {most}",
            )
            for name, size, least, most in (
                ("BLOCK_M", 8, 16, 256),
                ("BLOCK_N", 512, 16, 256),
                ("BLOCK_K", 1, 16, 256),
                ("num_warps", 64, 1, 32),
                ("num_stages", 10**400, 1, 16),
            )
        ),
        (
            lambda c: c["entries"][0]["ways"]["one_launch"].update(tiles=None),
            "one_launch: tiles is not an object",
        ),
        (
            lambda c: c["entries"][0]["ways"]["one_launch"]["tiles"].update(pdl=1),
            "one_launch: pdl is 1; expected true or false",
        ),
    ],
)
def test_damage_is_named(content, tmp_path, change, reason):
    damaged = copy.deepcopy(content)
    change(damaged)
    path = write(damaged, tmp_path)
    with pytest.raises(TableError) as error:
        Table.read(path, STEM, DEVICE, tuning.TRITON)
    assert error.value.path == path
    assert reason in error.value.reason
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", [*NO_JSON, b"[]", b"null"], ids=lambda text: text[:9])
def test_a_file_that_is_no_table_is_named(tmp_path, text):
    (tmp_path / "table.json").write_bytes(text)
    with pytest.raises(TableError, match="table.json is no tuned table"):
        Table.read(tmp_path / "table.json", STEM, DEVICE, tuning.TRITON)


@FEW
@given(content=damaged(table(dense=60.0, one_launch=(30.0, TILES)).to_dict()))
def test_what_is_read_is_what_the_file_says(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(content))
    try:
        read = Table.read(path, STEM, DEVICE, tuning.TRITON)
    except TableError:
        return
    for measured in (m for entry in content["entries"] for m in entry["ways"].values()):
        if "tiles" in measured:
            measured["tiles"].setdefault("pdl", False)  # older tables lack it
    assert same(read.to_dict(), content)


def test_stages_need_not_be_a_power_of_two(content, tmp_path):
    content["entries"][0]["ways"]["one_launch"]["tiles"]["num_stages"] = 3
    path = write(content, tmp_path)
    assert Table.read(path, STEM, DEVICE, tuning.TRITON).entries[KEY].keys() == {2048}


@pytest.mark.parametrize("pdl", [True, False])
def test_a_dependent_launch_is_read_again(pdl, tmp_path):
    made = table(dense=60.0, one_launch=(30.0, replace(TILES, pdl=pdl)))
    assert Table.read(write(made, tmp_path), STEM, DEVICE, tuning.TRITON) == made


def test_older_tables_have_no_dependent_launches(content, tmp_path):
    del content["entries"][0]["ways"]["one_launch"]["tiles"]["pdl"]
    read = Table.read(write(content, tmp_path), STEM, DEVICE, tuning.TRITON)
    assert read.entries[KEY][2048].variants["one_launch"].tiles == TILES


def test_only_dependent_launches_have_the_option():
    """Backends that do not know the option refuse it."""
    plain = TILES.kwargs()
    assert replace(TILES, pdl=True).kwargs() == plain | {"PDL": True, "launch_pdl": True}
    assert plain.keys() == set(TileConfig.__annotations__) - {"pdl"} | {"PDL"}


def test_every_shipped_table_is_one():
    for path in tuning.SHIPPED.glob("*/*.json"):
        device, triton = path.stem.split("-triton")
        assert Table.read(path, path.parent.name, device, triton).entries
