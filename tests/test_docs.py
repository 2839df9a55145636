"""What the README and the pages in docs show is there and runs: links, commands, options, presets, lines of Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from demo.__main__ import parse as parse_demo
from flowprior import FlowPrior, VelocityMLP
from flowprior.flow.target_map import TargetMap
from flowprior.run.config import apply_overrides, build_config, list_options
from flowprior.run.presets import find_preset, read_preset
from generation import estimate_scale, generate
from generation.commands import COMMANDS as GENERATION_COMMANDS
from generation.presets import find_family
from imports.__main__ import parse as parse_import
from imports.config import ImportConfig
from latent_report.__main__ import parse as parse_report
from latent_report.config import ReportConfig
from mar.config import PRESETS as MAR_PRESETS
from mar.config import MARStageConfig
from scripts.benchmarks.__main__ import parse as parse_benchmark
from simflow.__main__ import COMMANDS as SIMFLOW_COMMANDS
from simflow.config import PRESETS as SIMFLOW_PRESETS
from simflow.config import SimFlowStageConfig
from simflow.train_simflow import PRESETS as JOINT_PRESETS
from simflow.train_simflow import SimFlowAEConfig
from sit.config import PRESETS as SIT_PRESETS
from sit.config import SiTStageConfig
from study.__main__ import make_plan as make_study
from study.__main__ import parse as parse_study
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.config import PRESETS as AE_PRESETS
from tokenizer.config import AEConfig
from tokenizer.prior.train_flowhead import PRESETS as PRIOR_PRESETS
from tokenizer.prior.train_flowhead import FlowPriorConfig
from tokenizer.vit import ViTConfig
from toy_examples.config import ToyConfig
from toy_examples.run import config_of as toy_config
from toy_examples.run import parse as parse_toy

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "fid_stats" / "README.md"]
}
STAGES: dict[str, tuple[type, Path]] = {
    "scripts/train_flowhead.sh": (FlowPriorConfig, PRIOR_PRESETS),
    "scripts/train_ae.sh": (AEConfig, AE_PRESETS),
    "scripts/train_mar.sh": (MARStageConfig, MAR_PRESETS),
    "scripts/train_simflow.sh": (SimFlowAEConfig, JOINT_PRESETS),
    "scripts/train_tarflow.sh": (SimFlowStageConfig, SIMFLOW_PRESETS),
    "simflow generate": (SimFlowStageConfig, SIMFLOW_PRESETS),
    "simflow likelihood": (SimFlowStageConfig, SIMFLOW_PRESETS),
    "mar cache_latents": (MARStageConfig, MAR_PRESETS),
    "mar generate": (MARStageConfig, MAR_PRESETS),
    "mar distil": (MARStageConfig, MAR_PRESETS),
    "mar distil_head": (MARStageConfig, MAR_PRESETS),
    "mar distil_guidance": (MARStageConfig, MAR_PRESETS),
    "mar evaluate": (MARStageConfig, MAR_PRESETS),
    "scripts/train_sit.sh": (SiTStageConfig, SIT_PRESETS),
    "sit generate": (SiTStageConfig, SIT_PRESETS),
}
OPTIONS = {
    name
    for cls in (
        FlowPriorConfig,
        AEConfig,
        MARStageConfig,
        SiTStageConfig,
        SimFlowAEConfig,
        SimFlowStageConfig,
        ToyConfig,
        ReportConfig,
        ImportConfig,
    )
    for name, _, _ in list_options(cls)
}


class Command(NamedTuple):
    """``NAME=value ... bash|python what words``, as a page shows it."""

    page: str
    environment: dict[str, str]
    what: str  # a file, a module, or a generator's package and its command
    words: list[str]


def code_blocks(page: str, *languages: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.S | re.M)
    return [block for language, block in blocks if language in languages]


def inline_code(page: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page, flags=re.S))]


def commands() -> list[Command]:
    """Every command of every page that starts a script or a module of this tree."""
    found = []
    for name, page in PAGES.items():
        shown = [line for block in code_blocks(page, "bash", "") for line in block.splitlines()] + inline_code(page)
        for line in shown:
            form = re.fullmatch(r"""((?:[A-Z_]+=(?:"[^"]*"|\S+) )*)(?:bash|python(?: -m)?) (?!-)(.+)""", line)
            if form:
                environment = dict(word.split("=", 1) for word in shlex.split(form[1]))
                what, *words = shlex.split(form[2], comments=True)
                if what in ("mar", "sit", "simflow") and words[0] in {
                    *GENERATION_COMMANDS,
                    *SIMFLOW_COMMANDS,
                    "distil_head",
                    "distil_guidance",
                }:
                    what, *words = f"{what} {words[0]}", *words[1:]
                found.append(Command(name, environment, what, words))
    return found


COMMANDS = commands()


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading_of_it(name):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(PAGES[str(file.resolve().relative_to(ROOT))]), target


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_in_code_is_there(name):
    named = [
        code for code in inline_code(PAGES[name]) if re.fullmatch(r"[a-z_]+/[\w/.]*", code) and "runs/" not in code
    ]
    assert [code for code in named if not (ROOT / code).exists()] == []


def test_the_readme_is_two_screens_long_and_no_line_is_wider_than_one():
    page = PAGES["README.md"]
    lines = page.splitlines()
    assert len(lines) <= 220 and len(page.split()) <= 1800
    assert max(map(len, lines)) <= 120 and max(len(line) for line in lines if line.startswith("|")) <= 100


def stage_options(command: Command) -> dict[str, Any]:
    """A stage's preset with the command's options over it."""
    _, presets = STAGES[command.what]
    own = {"scripts/train_simflow.sh": "digits_simflow"}.get(command.what, "digits")
    name, words = command.environment.get("PRESET", own), command.words
    if "--preset" in words:
        at = words.index("--preset")
        name, words = words[at + 1], words[:at] + words[at + 2 :]
    if name.endswith(".yaml"):  # of the reader's own
        name = "digits"
    find = find_family if presets in (MAR_PRESETS, SIT_PRESETS, SIMFLOW_PRESETS) else find_preset
    preset = find(name, presets)
    return apply_overrides(read_preset(preset, presets), [word for word in words if not word.startswith("--")])


OF_STAGES = [
    command
    for command in COMMANDS
    if command.what in STAGES and command.environment.get("PRESET") != "<preset>" and command.words != ["--help"]
]


@pytest.mark.parametrize("command", OF_STAGES, ids=lambda command: f"{command.page} {command.what}")
def test_every_stages_command_names_a_preset_and_options_that_are_there(command):
    words = command.words
    if command.what in ("mar generate", "sit generate", "simflow generate"):
        _, words = generate.parse(words)
    flags = {word for word in words if word.startswith("--")}
    assert flags <= ({"--dry-run"} if command.what == "scripts/train_ae.sh" else {"--preset"})
    build_config(STAGES[command.what][0], stage_options(command._replace(words=words)))


def test_every_other_command_is_there_and_takes_the_options_that_it_is_shown_with():
    others = [command for command in COMMANDS if command.what not in STAGES]
    assert len(OF_STAGES) >= 30 and len({command.what for command in others}) >= 8
    for command in others:
        if command.what == "toy_examples/run.py":
            toy_config(parse_toy(command.words))
        elif command.what == "scripts/benchmark.sh":
            parse_benchmark(command.words)
        elif command.what == "scripts/study.sh":
            make_study(parse_study(command.words))
        elif command.what == "scripts/latent_report.sh":
            parse_report(command.words)
        elif command.what == "scripts/demo.sh":
            parse_demo(command.words)
        elif command.what == "scripts/import_weights.sh":
            parse_import(command.words)
        elif command.what == "mar estimate_scale":
            estimate_scale.parse(MARStageConfig, command.words)
        else:
            script = command.what if "/" in command.what else f"{command.what.replace('.', '/')}.py"
            assert (ROOT / script).is_file(), command


@pytest.mark.parametrize("name", PAGES)
def test_every_option_that_a_page_names_is_there(name):
    for code in inline_code(PAGES[name]):
        option = re.match(r"([a-z_]+(?:\.[a-z_]+)*)=", code)
        if option and not re.search(r"\w\(", code):
            option = option.group(1)
            of_python = option in ("objective", "grid")  # arguments of alignment_loss
            assert of_python or any(f".{known}".endswith(f".{option}") for known in OPTIONS), code


def test_every_preset_that_a_page_names_is_there():
    folders = [presets for _, presets in STAGES.values()] + [ROOT / "toy_examples" / "configs"]
    there = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    named = {
        code for page in PAGES.values() for code in inline_code(page) if re.fullmatch(r"(digits|imagenet)_\w+", code)
    }
    assert len(named) >= 15 and named <= there


@pytest.mark.parametrize(
    "name", ["REGULARISERS", "LATENT_MAPS", "DISCRIMINATORS", "FEATURES", "METERS", "TARGETS", "METRICS"]
)
def test_every_registry_is_in_the_file_that_is_named_for_it(name):
    file = re.search(rf"`{name}` in `([^`]+)`", PAGES["CONTRIBUTING.md"]).group(1)
    assert re.search(rf"^{name}\b.*=", (ROOT / file).read_text(), flags=re.M)


@pytest.fixture
def scope(tmp_path, monkeypatch) -> dict[str, Any]:
    """What a page's lines find there: small features and latents, a small prior, and a ``fit`` of three steps."""
    monkeypatch.chdir(tmp_path)
    small = FlowPrior(VelocityMLP(4, 8, 1), TargetMap(torch.zeros(6), torch.ones(()), torch.randn(6, 4)))
    small.save("runs/digits/flowhead/prior")
    fit = FlowPrior.fit
    quick = {"steps": 3, "width": 8, "depth": 1, "progress": False}
    monkeypatch.setattr(FlowPrior, "fit", lambda *args, **options: fit(*args, **{**options, **quick}))
    return {"FlowPrior": FlowPrior, "device": "cpu", "loss": 0.0, "features": torch.randn(64, 48)}


def run(block: str, scope: dict[str, Any]) -> None:
    exec(compile(block, "a page", "exec"), scope)


def test_the_readmes_lines_of_python_run_as_they_stand(scope):
    latents = scope["latents"] = torch.randn(2, 3, 32, requires_grad=True)
    [block] = code_blocks(PAGES["README.md"], "python")
    run(block, scope)
    scope["loss"].backward()
    assert latents.grad.abs().sum() > 0 and scope["nats"].shape == (2, 3)
    assert scope["samples"].shape == (1000, 32) and scope["targets"].shape == (64, 32)
    assert Path("my_prior/model.safetensors").is_file()


def test_the_lines_with_a_prior_with_an_online_flow_and_to_make_one_run_as_they_stand(scope):
    latents = scope["latents"] = torch.randn(2, 3, 4, requires_grad=True)
    use, make, follow = [
        block for block in code_blocks(PAGES["docs/usage.md"], "python") if "prior" in block and "Auto" not in block
    ]
    for block in (use, follow, make):  # the prior of the first stands in the second, too
        run(block, scope)
    scope["loss"].backward()
    assert latents.grad.abs().sum() > 0 and scope["online"].updates == 1
    assert scope["samples"].shape == (1000, 32) and scope["targets"].shape == (64, 32)
    assert Path("my_prior/model.safetensors").is_file()


def test_the_tokenizer_encodes_decodes_and_tells_of_itself_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vit = ViTConfig(width=12, depth=1, heads=3)
    small = Autoencoder(AutoencoderConfig(16, 8, 2, 4, encoder=vit, decoder=vit), {"prior": "abc"})
    small.save("runs/digits/ae/autoencoder")
    [block] = [block for block in code_blocks(PAGES["docs/usage.md"], "python") if "Autoencoder" in block]
    scope = {"images": torch.rand(2, 3, 16, 16)}
    run(block, scope)
    assert scope["latents"].shape == (2, 2, 4) and scope["images"].shape == (2, 3, 16, 16)
