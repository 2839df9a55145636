"""Row 14: two runs in one folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator

from flowprior.run.lock import DEAD_AFTER_SECONDS
from flowprior.run.lock import NAME as LOCK
from image_sets import pictures, write_shards
from soak.instruments import slow_saves, until
from soak.stages import STAGES, TRAINED, Soak, Trial, log_of, result_hash, stage_folder


def two_writers(soak: Soak) -> Iterator[Trial]:
    """Two starts a random moment apart; then locks that a dead owner left, here and on another machine."""
    for number in range(2 if soak.quick else 20):
        name = STAGES[number % len(STAGES)] if not soak.quick else ("ae", "cache")[number % 2]
        yield _pair(soak, name, ranks=2 if number % 7 == 6 else 1)
    for number in range(2 if soak.quick else 10):
        yield _indexers(soak, number)
    for name in ("flowhead", "cache", "mar") if not soak.quick else ("cache",):
        yield f"{name} after a killed owner", _after_a_kill(soak, name)
        yield f"{name} with an owner on another machine that is alive", _elsewhere(soak, name, alive=True)
        yield f"{name} with an owner on another machine that is dead", _elsewhere(soak, name, alive=False)


def _pair(soak: Soak, name: str, ranks: int, closer: float = 1.0) -> Trial:
    wanted, run = soak.reference(name, ranks), soak.fresh(name)
    delay = soak.random.uniform(0, 0.5) * wanted.seconds * closer
    first = soak.start(name, run, ranks=ranks, instrument=slow_saves(0.02))
    time.sleep(delay)
    second = soak.start(name, run, ranks=ranks, instrument=slow_saves(0.02))
    pair, codes = [first, second], [first.wait(), second.wait()]
    label = f"{name} started twice, {delay:.4f} s apart, {ranks} processes each"
    own = sorted(str(process.run_code()) for process in pair)
    if own == ["0", "0"] and ": complete (" in second.said() and closer > 0.01:
        shutil.rmtree(run)
        return _pair(soak, name, ranks, closer / 4)  # the first had ended before the second began
    problem = None
    if own != ["0", "2"]:
        problem = f"exit codes {codes}: {first.said()[-200:]} / {second.said()[-200:]}"
    else:
        loser, winner = sorted(pair, key=lambda process: process.run_code() == 0)
        owner = f"process {winner.pid if ranks == 1 else ''}"
        if owner not in loser.said() or socket.gethostname() not in loser.said() or "error: " not in loser.said():
            problem = f"the owner is not named: {loser.said()[-300:]}"
        elif result_hash(name, run) != wanted.hash or log_of(name, run) != wanted.log:
            problem = "another result than that of one writer"
    shutil.rmtree(run)
    return label, problem


def _indexers(soak: Soak, number: int) -> Trial:
    """Two caches in folders of their own, made from the same shards that have no index yet, the first one killed at a random moment."""
    shards = write_shards(soak.folder / "shards" / f"{number}", pictures(24, size=(18, 20)), per_shard=5, label="txt")
    runs = [soak.fresh("cache") for _ in range(3)]
    delays = [soak.random.uniform(0, 1.0), soak.random.uniform(0, 0.3)]
    doomed = soak.start("cache", runs[0], data=shards, instrument=slow_saves(0.02))
    time.sleep(delays[0])
    doomed.kill()
    pair = [soak.start("cache", run, data=shards, instrument=slow_saves(delays[1])) for run in runs[1:]]
    problem = next((process.said()[-300:] for process in pair if process.wait() != 0), None)
    if problem is None and result_hash("cache", runs[1]) != result_hash("cache", runs[2]):
        problem = "two different caches"
    if problem is None and len(indices := [file.name for file in shards.iterdir() if file.suffix == ".index"]) != 1:
        problem = f"indices {indices}"
    for run in runs:
        shutil.rmtree(run)
    return f"two runs on shards without an index, a third killed after {delays[0]:.3f} s", problem


def _after_a_kill(soak: Soak, name: str) -> str | None:
    run = soak.fresh(name)
    process = soak.start(name, run, instrument=slow_saves(0.02))
    lock = stage_folder(name, run) / LOCK
    until(lambda: lock.exists() and lock.stat().st_size > 0, process)
    process.kill()
    if not lock.exists():
        return "there was no lock to take over"
    problem = soak.finish(name, run)
    shutil.rmtree(run)
    return problem


def _elsewhere(soak: Soak, name: str, alive: bool) -> str | None:
    run = soak.fresh(name)
    lock = stage_folder(name, run) / LOCK
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01 00:00:00 +0000"}))
    if not alive:
        long_ago = time.time() - DEAD_AFTER_SECONDS - 5
        os.utime(lock, (long_ago, long_ago))
        problem = soak.finish(name, run)
    else:
        process = soak.start(name, run)
        refused = process.wait() == 2 and "process 1 on elsewhere" in process.said()
        problem = None if refused else f"exit code {process.code}: {process.said()[-300:]}"
        if name in TRAINED and (lock.parent / "config.yaml").exists():
            problem = problem or "it wrote all the same"
    shutil.rmtree(run)
    return problem
