import logging

import pytest
import torch

from lada_kernels import tuning
from lada_kernels.table import Table
from lada_kernels.variants import Variant, VariantName
from tests.kernels.tables import DEVICE, KEY, OTHERS, STEM, TILES, table, with_entry, write

EVERY = ("dense", "one_launch", "two_launches")


def look_up(m=2048, device_index=0, allowed=EVERY, **changes):
    given = KEY._replace(**changes)
    return tuning.fastest(STEM, *given, m, device_index, allowed)


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """An empty folder in the place of the shipped tables, and a GPU that is called H200."""
    found = [tmp_path / "shipped"]
    monkeypatch.setattr(tuning, "_folders", found)
    monkeypatch.setattr(tuning, "gpu_slug", lambda index: DEVICE)
    for cached in (tuning.fastest, tuning._table):
        cached.cache_clear()
    yield found
    for cached in (tuning.fastest, tuning._table):
        cached.cache_clear()


@pytest.fixture
def shipped(folders):
    return folders[0]


class TestFastest:
    def test_it_is_the_way_that_took_least_with_its_tiles(self, shipped):
        write(table(dense=60.0, one_launch=(30.0, TILES), two_launches=40.0), shipped)
        assert look_up() == Variant("one_launch", TILES)

    def test_a_way_without_tiles_has_none(self, shipped):
        write(table(dense=60.0, one_launch=(50.0, TILES), two_launches=40.0), shipped)
        assert look_up() == Variant("two_launches")

    def test_dense_counts_only_where_it_is_allowed(self, shipped):
        write(table(dense=20.0, one_launch=(30.0, TILES)), shipped)
        assert look_up() == Variant("dense")
        assert look_up(allowed=("one_launch",)) == Variant("one_launch", TILES)

    def test_it_is_none_where_nothing_that_is_allowed_was_measured(self, shipped):
        write(table(dense=20.0, one_launch=(30.0, TILES)), shipped)
        assert look_up(allowed=(VariantName.SPLIT_K,)) is None

    @pytest.mark.parametrize(
        "changes",
        [{"dtype": "float16"}, {"k": 769}, {"n": 768}, {"weight": "r64"}, {"epilogue": "plain"}],
        ids=lambda changes: next(iter(changes)),
    )
    def test_it_is_none_for_what_was_not_measured(self, shipped, changes):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        assert look_up(**changes) is None

    def test_a_torch_dtype_is_as_good_as_its_name(self, shipped):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        assert look_up(dtype=torch.bfloat16) == Variant("one_launch", TILES)

    def test_it_is_none_without_tables(self, folders):
        assert look_up() is None

    def test_the_cpu_has_no_table_and_no_device_is_asked(self, folders, monkeypatch):
        monkeypatch.setattr(tuning, "gpu_slug", lambda index: pytest.fail("asked"))
        assert look_up(device_index=torch.empty(1).get_device()) is None

    @pytest.mark.parametrize(
        ("m", "want"),
        [
            (1, "two_launches"),
            (128, "two_launches"),
            (129, "one_launch"),  # its bucket, 256, was not measured, and is as near to 512
            (512, "one_launch"),
            (1024, "one_launch"),
            (1025, "dense"),
            (2048, "dense"),
            (65536, "dense"),
        ],
    )
    def test_the_nearest_number_of_tokens_counts(self, shipped, m, want):
        made = Table(STEM, DEVICE, tuning.TRITON)
        with_entry(made, 128, dense=9.0, one_launch=8.0, two_launches=7.0)
        with_entry(made, 512, dense=9.0, one_launch=7.0, two_launches=8.0)
        with_entry(made, 4096, dense=7.0, one_launch=8.0, two_launches=9.0)
        write(made, shipped)
        found = look_up(m)
        assert found is not None
        assert found.name == want

    def test_a_second_look_up_reads_and_asks_nothing(self, shipped, monkeypatch):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        first = look_up()
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "gpu_slug", lambda index: pytest.fail("asked"))
            patch.setattr(tuning, "_table", lambda *key: pytest.fail("read"))
            assert look_up() is first

    def test_a_file_is_read_once_for_all_its_entries(self, shipped, monkeypatch):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        look_up()
        monkeypatch.setattr(Table, "read", lambda *key: pytest.fail("read again"))
        assert look_up(m=17) == Variant("one_launch", TILES)


class TestFolders:
    @pytest.fixture
    def users(self, folders, tmp_path):
        tuning.add_folder(tmp_path / "users")
        return tmp_path / "users"

    def test_the_users_table_wins_where_it_is_faster(self, shipped, users):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write(table(dense=60.0, one_launch=(20.0, OTHERS)), users)
        assert look_up() == Variant("one_launch", OTHERS)

    def test_the_shipped_table_stays_where_it_is_faster(self, shipped, users):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write(table(dense=60.0, one_launch=(40.0, OTHERS)), users)
        assert look_up() == Variant("one_launch", TILES)

    def test_times_count_as_shares_of_dense_in_the_same_table(self, shipped, users):
        """A GPU at half its clock measures twice the time; its tiles may still be the better."""
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write(table(dense=120.0, one_launch=(50.0, OTHERS)), users)
        assert look_up() == Variant("one_launch", OTHERS)

    def test_the_users_is_taken_where_both_are_as_fast(self, shipped, users):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write(table(dense=60.0, one_launch=(30.0, OTHERS)), users)
        assert look_up() == Variant("one_launch", OTHERS)

    def test_the_nearest_number_of_tokens_is_that_of_all_tables(self, shipped, users):
        write(table(dense=60.0, one_launch=(50.0, TILES)), shipped)
        far = with_entry(
            Table(STEM, DEVICE, tuning.TRITON), 64, dense=9.0, one_launch=(1.0, OTHERS)
        )
        write(far, users)
        assert look_up() == Variant("one_launch", TILES)
        assert look_up(m=64) == Variant("one_launch", OTHERS)

    def test_a_folder_added_later_is_seen(self, shipped, tmp_path):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write(table(dense=60.0, one_launch=(20.0, OTHERS)), tmp_path / "late")
        assert look_up() == Variant("one_launch", TILES)
        tuning.add_folder(tmp_path / "late")
        assert look_up() == Variant("one_launch", OTHERS)

    def test_a_folder_is_searched_once(self, folders, tmp_path):
        tuning.add_folder(str(tmp_path / "twice"))
        tuning.add_folder(tmp_path / "twice")
        assert folders == [tmp_path / "twice", tmp_path / "shipped"]


class TestWhatCannotBeUsed:
    def test_another_tritons_table_is_ignored_with_one_reason(self, shipped, caplog):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped, triton="2.1")
        with caplog.at_level(logging.WARNING, "lada_kernels"):
            assert look_up() is None
            assert look_up(m=17) is None
        (record,) = caplog.records
        assert f"{DEVICE}-triton2.1.json" in record.getMessage()
        assert f"this is Triton {tuning.TRITON}" in record.getMessage()

    def test_another_tritons_table_beside_ours_is_no_reason(self, shipped, caplog):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped, triton="2.1")
        with caplog.at_level(logging.WARNING, "lada_kernels"):
            assert look_up() == Variant("one_launch", TILES)
        assert caplog.records == []

    def test_a_corrupted_table_is_ignored_with_one_reason(self, shipped, caplog):
        path = write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        path.write_text(path.read_text()[:-9])
        with caplog.at_level(logging.WARNING, "lada_kernels"):
            assert look_up() is None
            assert look_up(m=17) is None
        (record,) = caplog.records
        assert str(path) in record.getMessage()

    def test_a_corrupted_table_leaves_the_other_folder_alone(self, shipped, folders, tmp_path):
        write(table(dense=60.0, one_launch=(30.0, TILES)), shipped)
        write({}, tmp_path / "users")
        tuning.add_folder(tmp_path / "users")
        assert look_up() == Variant("one_launch", TILES)


class TestUnsupported:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        tuning.unsupported.cache_clear()
        yield
        tuning.unsupported.cache_clear()

    @pytest.fixture
    def gpu(self, monkeypatch):
        def pretend(name, capability):
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)

        return pretend

    @pytest.mark.parametrize(("name", "capability"), [("Tesla T4", (7, 5)), ("V100", (7, 0))])
    def test_an_old_gpu_is_told_what_is_needed(self, gpu, name, capability):
        gpu(name, capability)
        reason = tuning.unsupported(0)
        assert reason is not None
        assert f"{name} has compute capability {capability[0]}.{capability[1]}" in reason
        assert "expected 8.0 or newer" in reason

    @pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
    def test_a_newer_one_is_fine(self, gpu, capability):
        gpu("GPU", capability)
        assert tuning.unsupported(0) is None

    def test_amd_counts_its_capabilities_otherwise(self, gpu, monkeypatch):
        gpu("AMD", (7, 0))
        monkeypatch.setattr(torch.version, "hip", "7.0")
        assert tuning.unsupported(0) is None

    def test_the_device_is_asked_once(self, gpu, monkeypatch):
        gpu("Tesla T4", (7, 5))
        first = tuning.unsupported(0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: pytest.fail("asked"))
        assert tuning.unsupported(0) == first
