import itertools

from hypothesis import given
from hypothesis import strategies as st

from flowprior.data.order import MicroBatches, epoch_order


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
