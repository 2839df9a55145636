"""EVA-02's and DINOv3's rotary positions against complex numbers, turned one patch at a time; latent tokens are not turned."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.features.timm import FrozenViT
from tokenizer.tokens import placed
from tokenizer.vit import ViTConfig, build_vit

SIDE, TOKENS = 4, 3  # patches on a side, latent tokens
EVA02, DINOV3, MIXED = "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"
NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not timm.is_model(name), reason=f"timm {timm.__version__} has no {name}")
    )
    for name in (EVA02, DINOV3, MIXED)
]


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, depth=2, **options))


def make(name: str, decodes: bool = False, **options) -> Autoencoder:
    """``name`` encodes, or ``decodes``; every weight is away from its initialisation, layer scales and positions among them."""
    torch.manual_seed(0)
    vits = [ViTConfig(name), ViTConfig(width=24, depth=1, heads=3)]
    encoder, decoder = reversed(vits) if decodes else vits
    autoencoder = Autoencoder(AutoencoderConfig(8 * SIDE, 8, TOKENS, 5, encoder=encoder, decoder=decoder, **options))
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return autoencoder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def angles(name: str, vit, block: int, head: int, row: int, column: int, size: int) -> list[float]:
    """By which the ``size / 2`` pairs of a query or key of the patch at (row, column) are turned, as the papers have it."""
    quarter = size // 4
    if name == EVA02:  # positions as in the 16 x 16 patches of its training, wavelengths from 2 pi to 20,000 pi
        y, x = row / SIDE * 16, column / SIDE * 16
        return [place * 10_000 ** (-i / quarter) for place in (y, x) for i in range(quarter)]
    if name == DINOV3:  # centres of patches in [-1, 1], periods from 1 to 100
        y, x = ((place + 0.5) / SIDE * 2 - 1 for place in (row, column))
        return [2 * math.pi * place / 100 ** (2 * i / (size // 2)) for place in (y, x) for i in range(quarter)]
    frequency = vit.rope.freqs[:, block].reshape(2, vit.blocks[0].attn.num_heads, -1)[:, head]  # learned, of x and y
    return (frequency[0] * column + frequency[1] * row).tolist()


def turned(vector: torch.Tensor, by: list[float], halves: bool) -> torch.Tensor:
    """``vector (d)`` with its pairs as complex numbers times ``exp(i angle)``; pairs are neighbours, or one of each half."""
    pairs = vector.view(2, -1).T if halves else vector.view(-1, 2)
    numbers = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(len(by)), torch.tensor(by))
    pairs = torch.view_as_real(numbers)
    return pairs.T.flatten() if halves else pairs.flatten()


def slow_block(name: str, vit, number: int, x: torch.Tensor) -> torch.Tensor:
    """One block on one image's tokens ``(n, W)``, head by head and token by token."""
    block, prefix = vit.blocks[number], vit.num_prefix_tokens
    attention, normed = block.attn, block.norm1(x)
    if attention.qkv is None:
        q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
        q, k, v = F.linear(normed, attention.qkv.weight, bias).chunk(3, -1)
    outputs, size = [], q.shape[-1] // attention.num_heads
    for head in range(attention.num_heads):
        qh, kh, vh = (part[:, head * size : (head + 1) * size].clone() for part in (q, k, v))
        for patch in range(SIDE**2):
            by = angles(name, vit, number, head, *divmod(patch, SIDE), size)
            for part in (qh, kh):
                part[prefix + patch] = turned(part[prefix + patch], by, halves=name == DINOV3)
        outputs.append((qh @ kh.T / size**0.5).softmax(-1) @ vh)
    mixed = attention.proj(torch.cat(outputs, -1))
    x = x + (mixed if block.gamma_1 is None else block.gamma_1 * mixed)
    mlp = block.mlp(block.norm2(x))
    return x + (mlp if block.gamma_2 is None else block.gamma_2 * mlp)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_patches_are_turned_by_their_places_and_latent_tokens_are_not(name, images):
    encoder = make(name).encoder.eval()
    vit = encoder.vit
    start = placed(vit, vit.patch_embed(images)).tokens
    for image, found in enumerate(encoder(images)):
        x = torch.cat([start[image], encoder.latent_tokens[0]])
        for number in range(2):
            x = slow_block(name, vit, number, x)
        torch.testing.assert_close(found, encoder.to_latent(vit.norm(x)[-TOKENS:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_without_latent_tokens_it_is_timms_own_forward_pass(name, images):
    frozen = FrozenViT(ViTConfig(name), 64)
    resized = F.interpolate(images, size=(frozen.size, frozen.size), mode="bicubic", antialias=True)
    expected = frozen.vit.forward_features(((resized + 1) / 2 - frozen.mean) / frozen.std)
    assert torch.equal(frozen(images), expected)


@pytest.mark.parametrize("name", NAMES)
def test_computing_its_blocks_again_changes_no_gradient(name, images):
    found = []
    for again in (False, True):
        encoder = make(name, checkpoint_blocks=again).encoder
        encoder(images).square().mean().backward()
        found.append({key: p.grad for key, p in encoder.named_parameters()})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_one_gives_the_same_outputs(name, images, tmp_path):
    autoencoder = make(name).eval()
    autoencoder.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(Autoencoder.load(tmp_path).encode(images), autoencoder.encode(images))


@pytest.mark.parametrize("name", NAMES)
def test_as_a_decoder_it_tells_latent_tokens_apart_by_their_own_positions_alone(name):
    decoder = make(name, decodes=True).decoder.eval()
    latents, order = torch.randn(2, TOKENS, 5), [2, 0, 1]
    with torch.no_grad():
        first = decoder(latents)
        assert not torch.allclose(decoder(latents[:, order]), first, atol=1e-2)
        decoder.latent_positions.copy_(decoder.latent_positions[:, order])
        torch.testing.assert_close(decoder(latents[:, order]), first, rtol=1e-4, atol=1e-4)


def test_positions_in_training_are_those_of_evaluation(images):
    name = "vit_base_patch16_sapiens2"  # turned by shifted and scaled places in its own training
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *a, **o: create(*a, num_kv_heads=2, embed_dim=64, num_heads=4, **o))
        vit = build_vit(ViTConfig(name), 8 * SIDE, 8)
    places = [vit.train(mode)._pos_embed(vit.patch_embed(images))[1] for mode in (True, False)]
    assert torch.equal(*places)
