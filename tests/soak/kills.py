"""Rows 1 and 15: processes that end before their time, by SIGKILL, by SIGTERM, and one rank of several."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from soak.instruments import slow_saves, until
from soak.processes import Process
from soak.stages import TRAINED, Soak, Trial, leftovers, log_of, stage_folder, steps_saved

TERMINATED = 128 + signal.SIGTERM
LONGEST_WAIT_SECONDS = 60  # that peers of a lost rank may take to end


def kill_and_resume(soak: Soak) -> Iterator[Trial]:
    """Kill at random instants, a third of them inside a slowed save, and run the same command until it ends."""
    for name in soak.stages:
        kills = attempts = 0
        while kills < soak.few(50, 3):
            run, labels = soak.fresh(name), []
            for _ in range(soak.random.randint(1, 3)):
                attempts += 1
                label = _kill(soak, name, run, inside_save=attempts % 3 == 2)
                if label is None:  # it was through before
                    break
                labels.append(label)
            problem = soak.finish(name, run)
            kills += len(labels)
            yield from ((f"{name} {' then '.join(labels[: n + 1])}", problem) for n in range(len(labels)))
            shutil.rmtree(run)


def _kill(soak: Soak, name: str, run: Path, inside_save: bool) -> str | None:
    """Start and kill; what was done, or None where the command ended before."""
    if inside_save:
        process = soak.start(name, run, instrument=slow_saves(0.01))
        for _ in range(soak.random.randint(0, 0 if name == "evaluate" else 4)):
            until(lambda: bool(_being_written(run)), process)
            until(lambda: not _being_written(run), process)
        until(lambda: bool(_being_written(run)), process)
        delay = soak.random.uniform(0, 0.02 if name == "evaluate" else 0.06)
    else:
        process = soak.start(name, run)
        delay = soak.random.uniform(0.05, 1) * soak.reference(name).seconds
    time.sleep(delay)
    if process.poll() is not None:
        return None
    process.kill()
    return f"killed {'in a save' if inside_save else 'anywhere'} after {delay:.4f} s, at step {max(steps_saved(name, run), default=0)}"


def _being_written(run: Path) -> list[Path]:
    patterns = ("*/checkpoints/.step_*", "*/.*.tmp", "mar/*/.*.tmp", "mar/flow_map/checkpoints/.step_*")
    return [path for pattern in patterns for path in run.glob(pattern)]


def signals(soak: Soak) -> Iterator[Trial]:
    """SIGTERM at random instants, to a single process, to the launcher and to one rank of two; and one rank that is killed."""
    for name in soak.stages:
        for number in range(soak.few(12, 2)):
            yield _single(soak, name, slow=number % 3 == 2)
    for name in soak.stages if not soak.quick else ("ae", "cache"):
        for kind in ["launcher"] * soak.few(3, 1) + ["rank"] * soak.few(3, 0) + ["lost"] * soak.few(2, 1):
            yield _of_two(soak, name, kind)


def _single(soak: Soak, name: str, slow: bool) -> Trial:
    run, delay = soak.fresh(name), soak.random.uniform(0, 1) * soak.reference(name).seconds
    instrument = {"instrument": slow_saves(0.01)} if slow else {}
    process = soak.start(name, run, **instrument)
    time.sleep(delay)
    process.send(signal.SIGTERM)
    code, label = process.wait(), f"{name} SIGTERM after {delay:.4f} s{' with slow saves' if slow else ''}"
    problem = _ended_well(name, run, process, code) or soak.finish(name, run)
    shutil.rmtree(run)
    return label, problem


def _ended_well(name: str, run: Path, process: Process, code: int | None) -> str | None:
    """What is wrong with how a run ended after SIGTERM."""
    before_it_began = code == -signal.SIGTERM and not stage_folder(name, run).joinpath("log.jsonl").exists()
    if code not in (0, TERMINATED) and not before_it_began:
        return f"exit code {code}: {process.said()[-400:]}"
    if "Traceback" in process.said():
        return f"a traceback: {process.said()[-400:]}"
    if code == TERMINATED and (remains := leftovers(run)):
        allowed = [r for r in remains if ".parts" in r]  # finished parts of a set, which the next run takes up
        if set(remains) - set(allowed):
            return f"left behind: {', '.join(remains)}"
    return _steps_lost(name, run)


def _steps_lost(name: str, run: Path) -> str | None:
    if name not in TRAINED:
        return None
    done, saved = max((row["step"] for row in log_of(name, run)), default=0), max(steps_saved(name, run), default=0)
    return f"{done - saved} steps were lost" if done > saved else None


def _of_two(soak: Soak, name: str, kind: str) -> Trial:
    soak.reference(name, ranks=2)
    run, delay = soak.fresh(name), soak.random.uniform(0.2, 1) * soak.reference(name, ranks=2).seconds
    rank = soak.random.randrange(2)
    label = f"{name} in two processes, {kind}{'' if kind == 'launcher' else f' {rank}'} after {delay:.4f} s"
    process = soak.start(name, run, ranks=2)
    time.sleep(delay)
    number = signal.SIGKILL if kind == "lost" else signal.SIGTERM
    process.send(number, None if kind == "launcher" else rank)
    start = time.monotonic()
    code = process.wait(LONGEST_WAIT_SECONDS)
    while process.orphans() and time.monotonic() < start + LONGEST_WAIT_SECONDS:
        time.sleep(0.05)
    problem = None
    if code is None:
        problem = f"the launcher did not end within {LONGEST_WAIT_SECONDS} s"
    elif orphans := process.orphans():
        problem = f"orphans after {LONGEST_WAIT_SECONDS} s: {orphans}"
    elif kind != "lost":
        problem = _steps_lost(name, run)
    problem = problem or soak.finish(name, run, ranks=2)
    shutil.rmtree(run)
    return label, problem
