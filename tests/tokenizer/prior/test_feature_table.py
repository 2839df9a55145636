import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.errors import UserError
from tokenizer.prior.targets.feature_table import FeatureTable, TableSizes

SIZES = TableSizes(rows=23, channels=3, rows_per_chunk=5, dtype="float32")
WHOLE = torch.randn(25, 3, generator=torch.Generator().manual_seed(0))


def begun(folder, made_from="recipe", sizes=SIZES) -> FeatureTable:
    table = FeatureTable(folder, made_from)
    table.begin(sizes, {"rows_per_image": 1})
    return table


def write(table: FeatureTable, chunks) -> None:
    for chunk in chunks:
        table.write(chunk, WHOLE[chunk * 5 : chunk * 5 + 5], SIZES)


@given(order=st.permutations(range(5)), stops=st.integers(0, 5), processes=st.integers(1, 3))
@settings(max_examples=25)
def test_whatever_order_and_interruption_every_row_is_there_once(order, stops, processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    write(begun(folder), order[:stops])
    again = begun(folder)
    assert sorted(again.missing()) == sorted(order[stops:]) and again.is_complete() == (stops == 5)
    for rank in range(processes):
        write(begun(folder), again.missing()[rank::processes] if rank == 0 else order[stops:][rank::processes])
    write(again, again.missing())
    assert again.is_complete() and np.array_equal(np.load(again.file), WHOLE[:23].numpy())


def test_rows_that_were_written_but_not_marked_are_written_again(tmp_path):
    table = begun(tmp_path)
    write(table, range(5))
    table.marks.write_bytes(b"\x01\x01\x00\x01\x01")
    with open(table.file, "r+b") as file:
        file.seek(-40, 2)
        file.write(bytes(8))  # inside chunk 3, which is marked: left alone
    assert begun(tmp_path).missing() == [2] and not table.is_complete()


@pytest.mark.parametrize("change", ["made_from", "truncated", "longer", "no marks", "record", "sizes"])
def test_a_table_of_another_recipe_or_a_damaged_one_is_begun_anew(tmp_path, change):
    table = begun(tmp_path)
    write(table, range(5))
    assert table.is_complete()
    recipe, sizes = "recipe", SIZES
    if change == "made_from":
        recipe = "another"
    elif change == "truncated":
        table.file.write_bytes(table.file.read_bytes()[:-1])
    elif change == "longer":
        table.file.write_bytes(table.file.read_bytes() + b"0")
    elif change == "no marks":
        table.marks.unlink()
    elif change == "record":
        table.record_file.write_text("{")
    else:
        sizes = TableSizes(23, 3, 4, "float32")
    assert (change == "sizes") == FeatureTable(tmp_path, recipe).is_complete()
    again = begun(tmp_path, recipe, sizes)
    assert len(again.missing()) == sizes.chunks and not again.is_complete()


def test_a_complete_table_is_left_as_it_is(tmp_path):
    table = begun(tmp_path)
    write(table, range(5))
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()}
    assert begun(tmp_path).is_complete()
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "dtype, value, refused", [("float16", 1e5, True), ("float32", 1e5, False), ("float32", float("nan"), True)]
)
def test_values_that_the_precision_cannot_hold_are_refused(tmp_path, dtype, value, refused):
    sizes = TableSizes(5, 3, 5, dtype)
    table = begun(tmp_path, sizes=sizes)
    rows = torch.zeros(5, 3)
    rows[2, 1] = value
    if refused:
        with pytest.raises(UserError, match="dtype=float32"):
            table.write(0, rows, sizes)
        assert table.missing() == [0]
    else:
        table.write(0, rows, sizes)
        assert np.load(table.file)[2, 1] == np.float32(value)


def test_a_table_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="GB are free"):
        begun(tmp_path, sizes=TableSizes(10**12, 1024, 4096, "float16"))
    assert list(tmp_path.iterdir()) == []
