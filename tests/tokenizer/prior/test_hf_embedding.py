"""Tables out of safetensors: in folders, and through the hub's own client from a server on this machine that speaks its protocol."""

import json
import os
import struct
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from flowprior.data.embedded import digit_images
from flowprior.data.features import read_features
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from hub import hub_client, serving
from tokenizer.prior.targets import TargetConfig, load_target
from tokenizer.prior.targets.base import TargetContext

NAME = "model.embed_tokens.weight"
TABLE = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
REST = {"model.norm.weight": torch.ones(6).bfloat16(), "lm_head.weight": torch.zeros(4, 6).bfloat16()}


def single(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({NAME: TABLE, **REST}, folder / "model.safetensors")
    return folder


def sharded(folder: Path, index: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file(REST, folder / shards[0])
    save_file({NAME: TABLE}, folder / shards[1])
    places = {name: shards[0] for name in REST} | {NAME: shards[1]}
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def load(run: Path, **options):
    config = build_config(TargetConfig, {"source": "hf_embedding", "hf_embedding": options})
    return load_target(config, TargetContext(0, run, World()))


@pytest.mark.parametrize("layout", [single, sharded, lambda folder: sharded(folder, index=False)])
def test_the_table_is_read_out_of_a_folder_however_its_files_are_laid_out(tmp_path, layout):
    target = load(tmp_path, folder=str(layout(tmp_path / "qwen")))
    assert torch.equal(target.features, TABLE) and target.name == f"qwen {NAME}"


def test_only_the_shard_that_holds_the_table_is_looked_at(tmp_path):
    folder = sharded(tmp_path / "qwen")
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert torch.equal(load(tmp_path, folder=str(folder)).features, TABLE)


def test_only_the_bytes_of_the_table_are_read(tmp_path):
    """Beside the table the file holds 12 GB of another tensor, which are a hole on the disk."""
    table = {"dtype": "BF16", "shape": [50, 6], "data_offsets": [0, 600]}
    hole = {"dtype": "F32", "shape": [3_000_000_000], "data_offsets": [600, 12_000_000_600]}
    header = json.dumps({NAME: table, "rest": hole}).encode()
    header += b" " * (-len(header) % 8)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + TABLE.view(torch.int16).numpy().tobytes())
        file.truncate(8 + len(header) + 12_000_000_600)
    before = resident_gb()
    rows = read_features(tmp_path / "model.safetensors", NAME)
    assert torch.equal(rows, TABLE) and resident_gb() - before < 0.1


def resident_gb() -> float:
    """Resident memory of this process now."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        pytest.skip("this system does not tell a process's memory")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


@pytest.mark.parametrize(
    "layout, change, message",
    [
        (single, {"tensor": "model.embed.weight"}, "model.embed_tokens.weight"),
        (sharded, {"tensor": "model.embed.weight"}, "lists no tensor 'model.embed.weight'.*model.embed_tokens.weight"),
        (lambda folder: sharded(folder, False), {"tensor": "wte"}, "no .safetensors file in .* has a tensor 'wte'"),
        (single, {"tensor": "model.norm.weight"}, r"shape \(N, d\)"),
        (single, {"folder": "nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(tmp_path, layout, change, message):
    folder = layout(tmp_path / "qwen")
    with pytest.raises(UserError, match=message):
        load(tmp_path, **({"folder": str(folder)} | change))


def test_a_missing_shard_an_empty_folder_and_a_damaged_file_are_named(tmp_path):
    folder = sharded(tmp_path / "qwen")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors, which is not there"):
        load(tmp_path, folder=str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no .safetensors"):
        load(tmp_path, folder=str(tmp_path / "empty"))
    file = single(tmp_path / "damaged") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=str(file)):
        load(tmp_path, folder=str(file.parent))
    (folder / "model.safetensors.index.json").write_text("[")
    with pytest.raises(UserError, match="index.json"):
        load(tmp_path, folder=str(folder))


def refusal(run: Path, **options) -> str:
    with pytest.raises(UserError) as refused:
        load(run, **options)
    return str(refused.value)


@pytest.fixture
def server(tmp_path) -> Iterator[ThreadingHTTPServer]:
    single(tmp_path / "hub" / "some" / "one")
    sharded(tmp_path / "hub" / "some" / "two")
    (tmp_path / "hub" / "some" / "none").mkdir()
    with serving(tmp_path / "hub") as server:
        yield server


def test_the_hub_is_asked_for_the_file_that_holds_the_table_and_then_no_more(tmp_path, server):
    home = str(tmp_path / "home")
    with hub_client(HF_HOME=home, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}"):
        for repository in ("some/one", "some/two"):
            target = load(tmp_path, repo=repository)
            assert torch.equal(target.features, TABLE) and target.name == f"{repository} {NAME}"
        assert "lists no tensor 'wte'" in refusal(tmp_path, repo="some/two", tensor="wte")
        assert "neither model.safetensors nor" in refusal(tmp_path, repo="some/none")
        assert "no/where" in refusal(tmp_path, repo="no/where")
    fetched = sorted(path.split("/main/")[0] + " " + path.rsplit("/", 1)[1] for path in server.fetched)
    assert fetched == [
        "/some/one/resolve model.safetensors",
        "/some/two/resolve model-00002-of-00002.safetensors",
        "/some/two/resolve model.safetensors.index.json",
    ]

    with hub_client(HF_HOME=home, HF_HUB_OFFLINE="1"):
        for repository in ("some/one", "some/two"):  # out of HF_HOME
            assert torch.equal(load(tmp_path, repo=repository).features, TABLE)
        line = refusal(tmp_path, repo="some/other")
    for part in ("model.safetensors of some/other", "huggingface.co", home, "target.hf_embedding.folder="):
        assert part in line
    assert "\n" not in line


def test_weights_of_a_timm_model_that_cannot_be_fetched_are_named_with_what_to_write(tmp_path):
    with hub_client(HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1"):
        config = build_config(TargetConfig, {"source": "timm", "timm": {"model": "vit_base_patch14_dinov2.lvd142m"}})
        with pytest.raises(UserError) as refused:
            load_target(config, TargetContext(0, tmp_path / "run", World()))
    for part in (
        "model.safetensors of timm/vit_base_patch14_dinov2.lvd142m",
        str(tmp_path / "home"),
        "target.timm.weights=",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_a_timm_model_come_from_the_hub(tmp_path, server):
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    place = tmp_path / "hub" / "timm" / "test_vit.r160_in1k"
    place.mkdir(parents=True)
    save_file(model.state_dict(), place / "model.safetensors")
    options = {"model": "test_vit", "features": "cls", "rows": 5, "dtype": "float32"}
    config = build_config(TargetConfig, {"source": "timm", "timm": options})
    with hub_client(HF_HOME=str(tmp_path / "home"), HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}"):
        rows = load_target(config, TargetContext(0, tmp_path / "run", World())).features
    with torch.no_grad():
        every = model.forward_features((digit_images(32)[0] / 255 - 0.5) / 0.5)[:, 0]
    assert rows.shape == (5, 64) and torch.cdist(rows, every).amin(1).max() < 0.05


def test_the_table_is_read_out_of_an_installed_package(tmp_path):
    target = load(tmp_path, package="wordllama", tensor="embedding.weight")
    assert target.features.shape == (32_000, 256) and target.name == "wordllama embedding.weight"
    with pytest.raises(UserError, match=r"holds no tensor 'other'|has no tensor 'other'|'other'"):
        load(tmp_path, package="wordllama", tensor="other")
    with pytest.raises(UserError, match="leave out one of them"):
        load(tmp_path, package="wordllama", folder=str(tmp_path))
