import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.data.order import MicroBatches, SampleKey


def stream(length, seed, batch, processes, accumulation, steps, start_step=0):
    """The global order of ``steps`` steps, put together from what every process reads."""
    readers = [iter(MicroBatches(length, seed, batch, rank, processes, start_step * accumulation)) for rank in range(processes)]
    return [key for _ in range(steps * accumulation) for reader in readers for key in next(reader)]


SIZES = {"length": st.integers(1, 40), "seed": st.integers(0, 10), "batch": st.integers(1, 7)}


@settings(deadline=None)
@given(**SIZES, epochs=st.integers(1, 4))
def test_every_sample_comes_once_an_epoch(length, seed, batch, epochs):
    keys = stream(length, seed, batch, 1, 1, -(-length * epochs // batch))[: length * epochs]
    assert sorted(keys) == sorted(SampleKey(i, e) for i, e in itertools.product(range(length), range(epochs)))
    assert [key.epoch for key in keys] == sorted(key.epoch for key in keys)


@settings(deadline=None)
@given(**SIZES, processes=st.integers(1, 4), accumulation=st.integers(1, 3))
def test_the_global_order_does_not_depend_on_processes_or_accumulation(length, seed, batch, processes, accumulation):
    together = stream(length, seed, batch * processes * accumulation, 1, 1, 5)
    assert stream(length, seed, batch, processes, accumulation, 5) == together


@settings(deadline=None)
@given(**SIZES, start=st.integers(0, 20))
def test_a_stream_that_starts_late_goes_on_where_the_whole_one_stands(length, seed, batch, start):
    whole = stream(length, seed, batch, 1, 2, start + 3)
    assert stream(length, seed, batch, 1, 2, 3, start_step=start) == whole[start * 2 * batch:]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(key.index for key in stream(30, seed, 30, 1, 1, 1, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
