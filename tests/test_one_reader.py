"""Reading other people's files, building their networks and filling networks with weights happens in few places, each named here."""

import ast

import pytest

CODE = ("flowprior", "tokenizer", "generation", "mar", "toy_examples", "fid_stats", "scripts")
READERS = {
    # Pictures: one reader of files, and the animation's own pages, which lie in memory.
    "Image.open": {"flowprior/data/image_reader.py", "toy_examples/animation.py"},
    "torch.load": {"flowprior/run/archives.py"},
    # Tables and maps of any file, memory-mapped; the arrays of a folder of packed images.
    "np.load": {"flowprior/run/archives.py", "flowprior/data/image_archive.py"},
    "timm.create_model": {"flowprior/pretrained/timm_models.py"},
    "load_state_dict": {
        "flowprior/pretrained/weights.py",  # networks of other people
        "flowprior/run/files.py",  # saved models of this project
        # What a checkpoint holds, handed to whom it belongs.
        "flowprior/training/checkpoint.py",
        "flowprior/training/optim.py",
        "flowprior/training/auxiliary_network.py",
        "flowprior/flow/online.py",
        "scripts/gpu_check/agreement.py",  # one objective's weights into its like on another device
    },
}
MODULES = {"Image": "PIL.Image", "np": "numpy"}  # as they are usually called here


def called(tree: ast.AST) -> set[str]:
    """Which of the readers' calls a module makes, whatever it calls the modules and functions that it imports."""
    names = {}  # local name -> full name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        # Named without a call, a function may be called under another name.
        if not isinstance(node, ast.Attribute | ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        first, _, rest = ast.unparse(node).partition(".")
        full = names.get(first, first) + (f".{rest}" if rest else "")
        if isinstance(node, ast.Attribute) and node.attr == "load_state_dict":
            found.add("load_state_dict")
        for reader in READERS:
            short, _, function = reader.rpartition(".")
            module = MODULES.get(short, short)
            if function == "create_model" and full.startswith("timm.") and full.endswith(".create_model"):
                found.add(reader)
            elif module and full == f"{module}.{function}":
                found.add(reader)
    return found


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_is_called_in_its_own_places_alone(repository, reader):
    calling = set()
    for package in CODE:
        for file in (repository / package).rglob("*.py"):
            name = file.relative_to(repository).as_posix()
            if reader in called(ast.parse(file.read_text())):
                calling.add(name)
    assert calling == READERS[reader]


@pytest.mark.parametrize(
    "code, reader",
    [
        ("from PIL import Image\nImage.open(f)", "Image.open"),
        ("import PIL.Image\nPIL.Image.open(f)", "Image.open"),
        ("from PIL import Image as I\nI.open(f)", "Image.open"),
        ("from PIL.Image import open as o\no(f)", "Image.open"),
        ("import torch\ntorch.load(f)", "torch.load"),
        ("import torch as t\nread = t.load\nread(f)", "torch.load"),
        ("from torch import load\nload(f)", "torch.load"),
        ("import numpy as np\nnp.load(f)", "np.load"),
        ("import numpy\nnumpy.load(f)", "np.load"),
        ("from numpy import load\nload(f)", "np.load"),
        ("import timm\ntimm.create_model(n)", "timm.create_model"),
        ("from timm.models import create_model\ncreate_model(n)", "timm.create_model"),
        ("model.part.load_state_dict(s, strict=False)", "load_state_dict"),
        ("nn.Module.load_state_dict(m, s)", "load_state_dict"),
    ],
)
def test_it_is_seen_under_any_name(code, reader):
    assert called(ast.parse(code)) == {reader}


@pytest.mark.parametrize(
    "code",
    [
        "import json\njson.load(f)",
        "import yaml\nyaml.load(f)",
        "open(f)",
        "class A:\n    def load_state_dict(self, state): ...",
        "import torch\ntorch.save(x, f)",
        "prior.load(f)",
    ],
)
def test_other_calls_are_not_taken_for_one(code):
    assert called(ast.parse(code)) == set()
