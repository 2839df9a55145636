"""An autoencoder of one's own, named by a Python file, wherever an autoencoder is taken."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.data.latent_cache import LatentCache
from flowprior.data.latent_writer import CacheConfig
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from generation import commands
from generation.autoencoder import load_autoencoder
from generation.cache_latents import make_encode
from latent_report.opening import ImageOptions, made_of, open_tokenizer
from sit.config import SiTStageConfig
from tokenizer.prior.targets.autoencoder import AutoencoderTarget
from tokenizer.prior.targets.base import TargetContext
from tokenizer.python_file import PythonAutoencoder

# Grey patches of 8 x 8 pixels, and back: no weights, and nothing is lost of grey images.
PATCHES = """
import torch
from einops import rearrange

class Patches(torch.nn.Module):
    def encode(self, images):
        return rearrange(images[:, 0], "b (h p) (w q) -> b {latents}", p=8, q=8)

    def decode(self, latents):
        grey = rearrange(latents, "b {latents} -> b 1 (h p) (w q)", p=8, q=8, h=2)
        return grey.expand(-1, 3, -1, -1)

def load():
    return Patches()
"""
TOKENS, MAP = PATCHES.replace("{latents}", "(h w) (p q)"), PATCHES.replace("{latents}", "(p q) h w")
# A layer with weights, of a posterior, beside a file that it imports.
POSTERIOR = """
import torch
from shift import SHIFT

class Posterior(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = torch.nn.Conv2d(3, 4, 8, 8), torch.nn.ConvTranspose2d(4, 3, 8, 8)

    def encode(self, images):
        mean = self.down(images)
        return mean, mean - SHIFT

    def decode(self, latents):
        return self.up(latents)

def load():
    torch.manual_seed(SEED)
    return Posterior()
"""


@pytest.fixture(autouse=True)
def modules_of_this_test_alone(monkeypatch):
    """As in a command of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("shift", "my_model"):
        sys.modules.pop(name, None)


@pytest.fixture
def images():
    return to_model(open_images(ImageConfig(size=16)).images[:3])


def written(folder: Path, text: str, name: str = "codec.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def stage(file: Path, size: int = 16) -> SiTStageConfig:
    return build_config(SiTStageConfig, {"autoencoder": str(file), "data": {"size": size}})


@pytest.mark.parametrize("text, places", [(TOKENS, (4,)), (MAP, (2, 2))])
def test_tokens_and_each_place_of_a_map_are_latents_that_decode_to_what_the_module_makes_of_them(
    text, places, images, tmp_path
):
    ours = load_autoencoder(stage(written(tmp_path, text)), torch.device("cpu"))
    tokens = rearrange(images[:, 0], "b (h p) (w q) -> b (h w) (p q)", p=8, q=8)
    assert torch.equal(ours.encode(images), tokens) and torch.equal(ours.decode(tokens), images)
    assert (ours.config.image_size, ours.config.tokens, ours.config.channels) == (16, 4, 64)
    assert ours.places == places and not ours.config.gaussian


def test_a_pair_is_a_posterior_whose_moments_are_cached_and_drawn_from(images, tmp_path):
    written(tmp_path, "SHIFT = 1.5", "shift.py")
    ours = load_autoencoder(stage(written(tmp_path, POSTERIOR.replace("SEED", "0"))), torch.device("cpu"))
    mean = ours.model.down(images).flatten(2).transpose(1, 2)
    noise = torch.ones_like(mean)
    drawn = ours.posterior(images, noise).latents
    torch.testing.assert_close(drawn, mean + (0.5 * (mean - 1.5)).exp())
    moments = make_encode(ours, CacheConfig(posterior="moments"), torch.device("cpu"))(images)
    torch.testing.assert_close(moments, torch.cat([mean, mean - 1.5], -1))
    assert not any(p.requires_grad for p in ours.parameters()) and not ours.training


def test_a_decoder_gets_maps_as_its_convolutions_lay_them_out_in_memory(images, tmp_path):
    """Which tokens are not, turned into a map: a decoder that takes a view of its input works for what is sampled as for what it encoded."""
    flattening = MAP.replace(
        'rearrange(latents, "b (p q) h w', 'rearrange(latents.view(len(latents), 64, 2, 2), "b (p q) h w'
    )
    assert flattening != MAP
    ours = load_autoencoder(stage(written(tmp_path, flattening)), torch.device("cpu"))
    assert torch.equal(ours.decode(ours.encode(images).contiguous()), images)


def test_a_module_beside_the_file_is_its_own_or_refused(tmp_path):
    text = "from my_model import Patches\ndef load():\n    return Patches()"
    for name in ("one", "other"):
        written(tmp_path / name, MAP, "my_model.py")
        written(tmp_path / name, text)
    assert PythonAutoencoder.load(tmp_path / "one" / "codec.py").at(16).places == (2, 2)
    with pytest.raises(
        UserError, match=r"beside .*other/codec.py lies a module my_model, and another .* loaded from .*one/my_model.py"
    ):
        PythonAutoencoder.load(tmp_path / "other" / "codec.py")
    del sys.modules["my_model"]
    written(tmp_path / "third", "", "tokenizer.py")
    with pytest.raises(UserError, match="lies a module tokenizer, and another of that name"):
        PythonAutoencoder.load(written(tmp_path / "third", MAP))


def test_its_fingerprint_is_of_its_text_and_of_its_weights(tmp_path):
    written(tmp_path, "SHIFT = 1.5", "shift.py")
    weights = tmp_path / "seed.txt"

    def fingerprint(seed: int, text: str) -> str:
        weights.write_text(str(seed))
        file = written(tmp_path, text.replace("SEED", f"int(open({str(weights)!r}).read())"))
        return PythonAutoencoder.load(file).fingerprint

    first = fingerprint(0, POSTERIOR)
    assert fingerprint(0, POSTERIOR) == first
    assert fingerprint(1, POSTERIOR) != first  # other weights of the same text
    assert fingerprint(0, POSTERIOR.replace("mean - SHIFT", "mean + SHIFT")) != first


ENCODE, DECODE = "torch.zeros(len(images), 4, 5)", "torch.zeros(len(latents), 3, 16, 16)"
MODULE = """
import torch
class Net(torch.nn.Module):
    def encode(self, images):
        return {encode}
    def decode(self, latents):
        return {decode}
def load():
    return Net()
"""


def module(encode: str = ENCODE, decode: str = DECODE) -> str:
    return MODULE.replace("{encode}", encode).replace("{decode}", decode)


@pytest.mark.parametrize(
    "text, said",
    [
        ("import torch\nimport not_there_at_all", "codec.py, line 2: running the file fails with ModuleNotFoundError"),
        ("def load(:", "running the file fails with SyntaxError"),
        ("x = 1", "has no function load()"),
        ("def load():\n    return open('/nowhere/weights.pt')", "line 2: load() fails with FileNotFoundError"),
        (
            "import torch\ndef load():\n    return torch.nn.Linear(2, 2)",
            "returns Linear, and not a torch.nn.Module with",
        ),
        ("def load():\n    return 3", "returns int, and not"),
        (module("images.nothing()"), "line 5: encode of images (2, 3, 16, 16) fails with AttributeError"),
        (module("images.flatten(1)"), "gives float32 (2, 768), and not floating-point tokens"),
        (module("torch.zeros(1, 4, 5)"), "gives float32 (1, 4, 5)"),
        (module("torch.zeros(2, 4, 5, dtype=torch.long)"), "gives int64 (2, 4, 5)"),
        (module(f"({ENCODE}, torch.zeros(2, 4, 6))"), "gives (float32 (2, 4, 5), float32 (2, 4, 6))"),
        (module(f"({ENCODE},) * 3"), "and not floating-point tokens"),
        (module("()"), "gives (), and not"),
        (module(f"({ENCODE},)"), "gives (float32 (2, 4, 5)), and not"),
        ("import sys\nsys.exit(3)", "codec.py, line 2: running the file fails with SystemExit"),
        (module() + "\nNet.get_extra_state = lambda self: {}", "the fingerprint of state_dict() fails with"),
        (module("None"), "gives NoneType"),
        (module(f"{ENCODE} + torch.randn(2, 4, 5)"), "gives other latents at every call: return a pair"),
        (module(decode="torch.zeros(2, 1, 16, 16)"), "decode of latents (2, 4, 5) in"),
        (module(decode="latents @ latents"), "line 7: decode of latents (2, 4, 5) fails with RuntimeError"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_its_place(text, said, tmp_path):
    with pytest.raises(UserError) as error:
        load_autoencoder(stage(written(tmp_path, text)), torch.device("cpu"))
    assert said in str(error.value) and "\n" not in str(error.value) and str(tmp_path / "codec.py") in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no Python file at .*nowhere.py"):
        load_autoencoder(stage(tmp_path / "nowhere.py"), torch.device("cpu"))


def test_the_low_level_target_and_the_latent_report_take_it_at_the_size_of_the_data(tmp_path):
    file = written(tmp_path, MAP)
    context = TargetContext(0, tmp_path / "run", World(), ImageConfig(size=16, subset="val"))
    target = AutoencoderTarget(path=str(file), dtype="float32").load(context)
    pictures = to_model(open_images(context.data).images)
    tokens = rearrange(pictures[:, 0], "b (h p) (w q) -> b (h w) (p q)", p=8, q=8)
    rows = target.features[:].reshape(-1, 64)
    assert torch.equal(rows, tokens.reshape(-1, 64))

    options = ImageOptions(ImageConfig(size=16), count=24)
    opened = open_tokenizer(str(file), options)
    assert opened.places == (2, 2) and opened.latents.shape == (24, 4, 64)
    torch.testing.assert_close(opened.decode(opened.latents), to_model(opened.images))
    before = made_of(str(file))
    written(tmp_path, MAP + "\n# another text")
    assert made_of(str(file)) != before


def test_a_generator_is_trained_sampled_and_measured_on_its_latents(tmp_path, monkeypatch, capfd):
    file, run = written(tmp_path / "code", TOKENS), tmp_path / "run"
    words = [
        f"run_dir={run}",
        f"autoencoder={file}",
        "data={source: digits, size: 16}",
        "model.sit={width: 16, depth: 1, heads: 2}",
        "train={steps: 3, global_batch: 8, eval_steps: 0, tensorboard: false}",
        "sample={count: 20, cfg: [1], preview_images: 10}",
        "evaluate={extractor: digits, metrics: [fid], half_half_splits: 0}",
    ]

    def call(command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["x", command, "--preset=digits", *words])
        try:
            commands.run(SiTStageConfig)
        except SystemExit as stop:
            return int(stop.code or 0), "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    for command in ("cache_latents", "estimate_scale", "train", "generate", "evaluate"):
        code, said = call(command)
        assert code == 0, said
    assert LatentCache(run / "latents").shape == (4, 64)
    with np.load(run / "sit" / "samples" / "cfg_1.npz", allow_pickle=False) as arrays:
        grey = arrays["arr_0"]
        assert grey.shape == (20, 16, 16, 3) and (grey == grey[..., :1]).all()  # this very decoder's
    assert json.loads((run / "sit" / "evaluation.json").read_text())["metrics"]["1"]["fid"] > 0

    file.write_text(TOKENS.replace("class Patches", "# changed\nclass Patches"))
    code, said = call("generate")
    assert code == 2 and "was trained on the latents of another autoencoder" in said and said.count("error:") == 1
