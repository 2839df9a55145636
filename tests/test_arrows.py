import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "flowprior": set(),
    "toy_examples": {"flowprior"},
    "tokenizer": {"flowprior"},
    "latent_report": {"flowprior", "tokenizer"},
    "generation": {"flowprior", "tokenizer"},
    "mar": {"flowprior", "tokenizer", "generation"},
    "simflow": {"flowprior", "tokenizer", "generation"},
    "sit": {"flowprior", "tokenizer", "generation"},
    "demo": {"flowprior", "tokenizer", "generation", "mar", "sit", "simflow"},
    "imports": {"flowprior", "tokenizer", "generation", "mar"},
    "study": {"flowprior", "tokenizer", "generation", "latent_report", "mar", "simflow", "sit"},
}


def modules():
    """Every module of the tree: dotted name -> file."""
    found = {}
    for package in MAY_IMPORT:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def for_types_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(body, name, is_package, everywhere):
    """``(imported module, names taken from it)``; inside functions only if ``everywhere``."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            yield ".".join(base + ([node.module] if node.module else [])), [alias.name for alias in node.names]
        elif for_types_only(node) and not everywhere:
            yield from imports(node.orelse, name, is_package, everywhere)
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            children = [
                child
                for child in ast.iter_child_nodes(node)
                if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case))
            ]
            yield from imports(children, name, is_package, everywhere)


def imports_of(name, file, everywhere):
    return imports(ast.parse(file.read_text()).body, name, file.name == "__init__.py", everywhere)


def import_graph(files, sources=None):
    """Which module runs which when it is imported: modules named, submodules taken by ``from``, and packages on the way."""
    graph = {}
    for name, file in files.items():
        targets = set()
        for target, taken in imports_of(name, file, everywhere=False):
            for candidate in [target, *(f"{target}.{part}" for part in taken)]:
                parts = candidate.split(".")
                targets |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & files.keys()
        ancestors = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
        graph[name] = targets - ancestors - {name}
    return graph


def find_cycle(graph):
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(graph[name]):
            if cycle := visit(target, [*path, name]):
                return cycle
        done.add(name)
        return None

    return next((cycle for name in sorted(graph) if (cycle := visit(name, []))), None)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_that_the_design_lets_it(package):
    others = MAY_IMPORT.keys() | {"fid_stats", "scripts", "tests"}
    mine = {name: file for name, file in modules().items() if name.split(".")[0] == package}
    assert mine
    for name, file in mine.items():
        reached = {target.split(".")[0] for target, _ in imports_of(name, file, everywhere=True)} & others
        assert reached <= MAY_IMPORT[package] | {package}, name


def test_no_module_of_generation_names_a_generator():
    generators = [package for package, below in MAY_IMPORT.items() if "generation" in below and "mar" not in below]
    assert "mar" in generators
    words = re.compile(rf"(?<![a-z])({'|'.join(generators)})(?![a-z])", re.IGNORECASE)
    files = sorted((ROOT / "generation").rglob("*.py"))
    assert len(files) > 10
    assert {f"{file.name}: {word}" for file in files for word in words.findall(file.read_text())} == set()


def test_no_module_imports_itself_by_way_of_others():
    assert find_cycle(import_graph(modules())) is None


def test_the_search_for_cycles_finds_one_and_passes_over_imports_for_types_and_inside_functions(tmp_path):
    sources = {
        "p": "",
        "p.a": "from p import b",
        "p.b": "try:\n    from .c import x\nexcept ImportError:\n    pass",
        "p.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a\ndef f():\n    import p.a",
    }
    files = {}
    for name, source in sources.items():
        files[name] = tmp_path / ("__init__.py" if name == "p" else f"{name[2:]}.py")
        files[name].write_text(source)
    assert find_cycle(import_graph(files)) is None
    files["p.c"].write_text("import p.a")
    assert find_cycle(import_graph(files)) == ["p.a", "p.b", "p.c", "p.a"]


def test_importing_flowprior_loads_no_heavy_or_optional_library():
    heavy = (
        "faiss",
        "torch_fidelity",
        "timm",
        "sklearn",
        "matplotlib",
        "torchmetrics",
        "tensorboard",
        "huggingface_hub",
    )
    code = f"import sys, flowprior; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


ROOMS = {  # of flowprior, and which others each may import; what lies in flowprior itself imports none of them
    "run": set(),
    "training": {"run"},
    "pretrained": {"run"},
    "flow": {"run", "training"},
    "data": {"run", "training"},
    "metrics": {"run", "data", "pretrained"},
}


def rooms_reached(name, file):
    named = [
        part for target, taken in imports_of(name, file, True) for part in (target, *(f"{target}.{n}" for n in taken))
    ]
    return {part.split(".")[1] for part in named if part.startswith("flowprior.")} & ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_flowprior_imports_only_those_below_it(room):
    mine = {name: file for name, file in modules().items() if name.startswith(f"flowprior.{room}.")}
    assert mine
    for name, file in mine.items():
        assert rooms_reached(name, file) <= ROOMS[room] | {room}, name


def test_what_lies_in_flowprior_itself_imports_no_room():
    mine = {name: file for name, file in modules().items() if name.count(".") == 1 and name.split(".")[1] not in ROOMS}
    top = {name: file for name, file in mine.items() if name.startswith("flowprior.")}
    assert {"flowprior.errors", "flowprior.distributed"} <= top.keys()
    assert {name: reached for name, file in top.items() if (reached := rooms_reached(name, file))} == {}


def test_stage_2_imports_nothing_of_stage_1():
    rest = {name: file for name, file in modules().items() if name.startswith("tokenizer.")}
    for name, file in rest.items():
        if not name.startswith("tokenizer.prior"):
            assert [t for t, _ in imports_of(name, file, True) if t.startswith("tokenizer.prior")] == [], name


def in_a_fresh_interpreter(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()


def test_a_prior_shapes_latents_without_the_training_loop_which_fit_alone_loads():
    code = """
import sys, torch
from flowprior import FlowPrior, VelocityMLP
from flowprior.flow.target_map import TargetMap
loop = [f"flowprior.training.{name}" for name in ("loop", "checkpoint", "compilation", "step_window")]
prior = FlowPrior(VelocityMLP(4, 8, 1), TargetMap(torch.zeros(6), torch.ones(()), torch.randn(6, 4)))
latents = torch.randn(2, 3, 4, requires_grad=True)
prior.alignment_loss(latents).backward()
print(len([name for name in loop if name in sys.modules]))
FlowPrior.fit(torch.randn(64, 6), channels=4, width=8, depth=1, steps=1, progress=False)
print(len([name for name in loop if name in sys.modules]))
"""
    assert in_a_fresh_interpreter(code) == ["0", "4"]
