"""Rows 11 and 12: files from other people, mutated and hostile. They are read or refused; they run nothing and take no memory."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from flowprior.errors import UserError
from soak.processes import Process
from soak.readers import Format, formats
from soak.stages import Soak, Trial

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 10  # that reading a small file may take
MOST_BYTES = 400 << 20  # that it may add to the process


class Hang(BaseException):
    """Reading took too long."""


def mutations(soak: Soak) -> Iterator[Trial]:
    """Mutate every format; half of those that checksums vouch for have these recomputed."""
    files = {name: kind_of(found.file) for name, found in formats(soak, _folder(soak, "names")).items()}
    for number, (name, kind) in enumerate(files.items()):
        many = -(-soak.few(10_000, 60) // list(files.values()).count(kind))
        seed = soak.seed * 1000 + number
        result = soak.folder / "mutated.json"
        process = Process(lambda: _mutate(soak, name, many, seed, result), soak.folder / "output" / "mutations")  # noqa: B023
        process.wait(1200)
        problems = json.loads(result.read_text()) if result.is_file() else {"0": "nothing was tried"}
        if process.code != 0:
            problems["ended"] = f"the reader's process ended with {process.code}: {process.said()[-300:]}"
        result.unlink(missing_ok=True)
        for trial in range(many):
            yield f"{name}, mutation {trial} of seed {seed}", problems.pop(str(trial), None)
        for problem in problems.values():
            yield f"{name}, seed {seed}", problem


def kind_of(file: Path) -> str:
    """The format: several files of the project may be of one."""
    return {".pth": ".pt", ".lock": ".json", ".yml": ".yaml"}.get(file.suffix or file.name, file.suffix)


def _folder(soak: Soak, name: str) -> Path:
    soak.count += 1
    folder = soak.folder / "formats" / f"{soak.count:04d}_{name.replace(' ', '_').replace('/', '_')}"
    folder.mkdir(parents=True)
    return folder


def _mutate(soak: Soak, name: str, many: int, seed: int, result: Path) -> None:
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    soak.count += 1_000_000 + seed
    chosen, draw, problems = formats(soak, _folder(soak, name))[name], random.Random(seed), {}
    whole = chosen.file.read_bytes()
    kept = {file: file.read_bytes() for file in chosen.file.parent.rglob("*") if file.is_file()}
    _limit_memory()
    for trial in range(many):
        chosen.file.write_bytes(mutated(whole, draw))
        if chosen.sign is not None and trial % 2:
            chosen.sign()
        if problem := how_it_reads(chosen.read):
            problems[str(trial)] = problem
        for file, content in kept.items() if trial % 20 == 19 or problem else {chosen.file: whole}.items():
            file.write_bytes(content)
        result.write_text(json.dumps(problems)) if problem else None
    result.write_text(json.dumps(problems))


def mutated(data: bytes, draw: random.Random) -> bytes:
    """``data`` with one to three changes: bits, bytes, cuts, repetitions, numbers and brackets in text."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        if not content:
            break
        at = draw.randrange(len(content))
        kind = draw.randrange(8)
        if kind == 0:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[at] = draw.randrange(256)
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            del content[at : at + draw.randint(1, 40)]
        elif kind == 4:
            content[at:at] = content[at : at + draw.randint(1, 40)]
        elif kind == 5:
            content[at : at + 8] = draw.choice((2**63 - 1, 2**40, 2**31, 0, 2**64 - 1)).to_bytes(8, "little")
        elif kind == 6:
            digits = [n for n, byte in enumerate(content) if 48 <= byte <= 57]
            if digits:
                place = draw.choice(digits)
                content[place : place + 1] = draw.choice(
                    (b"-1", b"99999999999999999999", b"1e999", b"null", b'"a"', b"0", b"NaN")
                )
        else:
            content[at:at] = draw.choice(
                (b"[" * 2000, b"{", b"]", b'"', b"\x00", b"\xff\xfe", b"&a [*a]", b"\n", b"../")
            )
    return bytes(content)


def how_it_reads(read: Callable[[], object]) -> str | None:
    """What is wrong with how a file is read; None if it was read, or refused in one sentence."""

    def ring(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
    except UserError as error:
        if isinstance(error.__cause__, MemoryError) or "allocate" in str(error):
            return f"it tries to take the memory: {error}"
        if "\n" in str(error):
            return f"more than one line: {error}"
    except Hang:
        return f"it takes more than {LONGEST_SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"it takes {grown >> 20} MB" if grown > MOST_BYTES else None


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30), size + (3 << 30)))


def no_code(soak: Soak) -> Iterator[Trial]:
    """Nothing in the code unpickles; and hostile files in the place of every file that is read run nothing."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = [ROOT / name for name in listed] or sorted(ROOT.rglob("*.py"))
    for file in files:
        if file.relative_to(ROOT).parts[0] in (
            "flowprior",
            "tokenizer",
            "generation",
            "mar",
            "sit",
            "toy_examples",
            "fid_stats",
        ):
            yield str(file.relative_to(ROOT)), "; ".join(code_from_files(file.read_text())) or None
    names, sprung = list(formats(soak, _folder(soak, "hostile_names"))), soak.folder / "sprung"
    contents = hostile(sprung)
    for name in names:
        result = soak.folder / "hostile.json"
        process = Process(lambda: _attack(soak, name, contents, sprung, result), soak.folder / "output" / "hostile")  # noqa: B023
        process.wait(300)
        told = json.loads(result.read_text()) if result.is_file() else {"all": "nothing was tried"}
        if process.code != 0:
            told["all"] = f"the reader's process ended with {process.code}: {process.said()[-300:]}"
        result.unlink(missing_ok=True)
        yield from ((f"{label} as {name}", problem) for label, problem in told.items())


def code_from_files(source: str) -> list[str]:
    """Calls in ``source`` that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = {module.split(".")[0], *(alias.name.split(".")[0] for alias in node.names)}
            found += [
                f"line {node.lineno}: {name}"
                for name in names & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
            ]
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        bad = called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle")
        bad |= called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False"
        bad |= called == "torch.load" and given.get("weights_only") != "True"
        bad |= given.get("allow_pickle") == "True" or given.get("trust_remote_code") == "True"
        if bad:
            found.append(f"line {node.lineno}: {called}")
    return found


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def hostile(sprung: Path) -> dict[str, bytes]:
    """Contents that run code, or take memory, where they are read carelessly."""
    saved, archive, bomb, objects = (io.BytesIO() for _ in range(4))
    torch.save({"features": Trap(sprung)}, saved)
    np.savez(archive, mu=np.array([Trap(sprung)], dtype=object), features=np.array([Trap(sprung)], dtype=object))
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name in ("mu", "sigma", "arr_0", "labels", "features"):
            with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f8", "fortran_order": False, "shape": (1 << 24,)}
                )
                for _ in range(1 << 7):
                    member.write(bytes(1 << 20))
    np.save(objects, np.array([Trap(sprung)], dtype=object))
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(12)]
    return {
        "a pickle": pickle.dumps(Trap(sprung)),
        "a torch file": saved.getvalue(),
        "an .npz of objects": archive.getvalue(),
        "an .npz that unpacks to 640 MB": bomb.getvalue(),
        "an .npy of objects": objects.getvalue(),
        "a picture of 900 megapixels": large_picture(30_000),
        "PostScript": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n({sprung}) (w) file closefile\n".encode(),
        "YAML that runs": f"!!python/object/apply:os.mkdir ['{sprung}']\n".encode(),
        "YAML that unfolds": "\n".join(lines).encode(),
        "JSON without end": b"[" * 200_000,
        "a name that leads out": json.dumps({"format": 2, "step": 3, "files": {"../../x.safetensors": {}}}).encode(),
    }


def large_picture(side: int) -> bytes:
    """A black PNG of ``side`` x ``side`` pixels, a bit each."""
    rows = zlib.compress(bytes(side * (1 + side // 8)))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _attack(soak: Soak, name: str, contents: dict[str, bytes], sprung: Path, result: Path) -> None:
    warnings.simplefilter("ignore")
    soak.count += 2_000_000
    folder = _folder(soak, f"hostile_{name}")
    chosen: Format = formats(soak, folder)[name]
    told: dict[str, str | None] = {}
    _limit_memory()
    kept = {file: file.read_bytes() for file in chosen.file.parent.rglob("*") if file.is_file()}
    for label, content in contents.items():
        start = time.monotonic()
        chosen.file.write_bytes(content)
        if chosen.sign is not None:
            chosen.sign()
        told[label] = how_it_reads(chosen.read)
        if sprung.exists():
            told[label] = "it ran"
            sprung.rmdir()
        if told[label] is None and time.monotonic() - start > LONGEST_SECONDS:
            told[label] = "it takes too long"
        for file, whole in kept.items():
            file.write_bytes(whole)
    result.write_text(json.dumps(told))
