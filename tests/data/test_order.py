import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flowprior.data.order import Blocks, MicroBatches, epoch_order


def take(count, **options):
    return list(itertools.islice(MicroBatches(**options), count))


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_an_epochs_order_is_a_permutation_that_seed_and_epoch_decide(length, seed, epoch):
    order = epoch_order(seed, epoch, length).tolist()
    assert sorted(order) == list(range(length)) and order == epoch_order(seed, epoch, length).tolist()
    if length >= 30:
        assert (
            order != epoch_order(seed, epoch + 1, length).tolist()
            and order != epoch_order(seed + 1, epoch, length).tolist()
        )


@given(length=st.integers(1, 40), size=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_sample_comes_once_an_epoch(length, size, epochs, seed):
    batches = take(-(-epochs * length // size), length=length, seed=seed, size=size)
    keys = [key for batch in batches for key in batch][: epochs * length]
    assert sorted(keys) == sorted((index, epoch) for epoch in range(epochs) for index in range(length))
    assert [key.epoch for key in keys] == sorted(key.epoch for key in keys)


@given(length=st.integers(1, 40), size=st.integers(1, 5), processes=st.integers(1, 4), count=st.integers(1, 6))
def test_the_parts_of_all_processes_make_up_the_global_batch_in_its_order(length, size, processes, count):
    whole = take(count, length=length, seed=1, size=size * processes)
    parts = [take(count, length=length, seed=1, size=size, rank=rank, processes=processes) for rank in range(processes)]
    assert [[key for part in parts for key in part[number]] for number in range(count)] == whole


@given(length=st.integers(1, 40), size=st.integers(1, 5), rank=st.integers(0, 1), start=st.integers(0, 60))
def test_a_start_skips_what_came_before(length, size, rank, start):
    options = dict(length=length, seed=2, size=size, rank=rank, processes=2)
    assert take(3, **options, start=start) == take(start + 3, **options)[start:]


@st.composite
def parts(draw):
    """Lengths of parts, and how many are mixed at a time."""
    return draw(st.lists(st.integers(1, 9), min_size=1, max_size=12)), draw(st.integers(1, 5))


@given(parts(), st.integers(0, 5), st.integers(0, 5))
def test_in_blocks_an_epoch_visits_each_part_once_and_a_few_at_a_time(given_parts, seed, epoch):
    lengths, mixed = given_parts
    starts, length = np.cumsum([0, *lengths[:-1]]), sum(lengths)
    order = epoch_order(seed, epoch, length, Blocks(starts, mixed)).tolist()
    assert (
        sorted(order) == list(range(length))
        and order == epoch_order(seed, epoch, length, Blocks(starts, mixed)).tolist()
    )
    part_of = np.searchsorted(starts, order, side="right") - 1
    while len(part_of):
        for size in range(1, len(part_of) + 1):  # a block ends where no part of it comes again
            block = set(part_of[:size].tolist())
            if size == sum(lengths[part] for part in block):
                break
        assert len(block) <= mixed
        part_of = part_of[size:]


def test_blocks_differ_from_epoch_to_epoch_and_mix_their_parts():
    blocks = Blocks(np.arange(0, 400, 10), 4)
    orders = [epoch_order(seed, epoch, 400, blocks) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    first = orders[0][:40] // 10
    assert len(set(first.tolist())) == 4 and (np.diff(first) != 0).sum() > 15


@given(parts(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 20))
def test_in_blocks_too_every_sample_comes_once_an_epoch_at_any_number_of_processes(given_parts, size, processes, start):
    lengths, mixed = given_parts
    blocks, length = Blocks(np.cumsum([0, *lengths[:-1]]), mixed), sum(lengths)
    options = {"length": length, "seed": 1, "blocks": blocks}
    whole = take(-(-2 * length // (size * processes)), size=size * processes, **options)
    keys = [key for batch in whole for key in batch][: 2 * length]
    assert sorted(keys) == sorted((index, epoch) for epoch in range(2) for index in range(length))
    of_ranks = [take(2, size=size, rank=rank, processes=processes, start=start, **options) for rank in range(processes)]
    wanted = list(itertools.islice(MicroBatches(size=size * processes, start=start, **options), 2))
    assert [[key for part in of_ranks for key in part[number]] for number in range(2)] == wanted
