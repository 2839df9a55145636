"""SoftVQ-VAE's latents, entropy and alignment, token by token against a plain restatement of their equations, gradients included."""

import json
import math

import pytest
import torch

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config, changed_options, to_dict
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, Encoded
from tokenizer.config import AEConfig
from tokenizer.latent_maps.segment_codebooks import SegmentCodebooks, SegmentCodebooksConfig
from tokenizer.regularisers import RegulariserConfig
from tokenizer.regularisers.assignment_entropy import entropy_loss
from tokenizer.regularisers.base import RegulariserContext
from tokenizer.regularisers.softvq import SoftVQConfig, pooled_entropy_loss
from tokenizer.vit import ViTConfig

BATCH, TOKENS, CHANNELS, CODEBOOKS, SIZE = 3, 6, 5, 3, 7
TEMPERATURE, COLD = 0.3, 0.2
VIT = ViTConfig(width=12, depth=1, heads=3)
MODEL = AutoencoderConfig(16, 8, TOKENS, CHANNELS, encoder=VIT, decoder=VIT)


class Sizes:
    patches, width = 4 * TOKENS, 3


def context(model=MODEL, features=Sizes) -> RegulariserContext:
    return RegulariserContext(None, model, 10, 0, World(), features)


def restated(latents: torch.Tensor, codewords: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft latents and the pooled entropy part, a token and a codeword at a time, in float64."""
    unit = [[word / word.norm() for word in book] for book in codewords]
    soft, entropies, shares = [], [], []
    for image in latents:
        row = []
        for place, token in enumerate(image):
            book = unit[place // (TOKENS // CODEBOOKS)]  # neighbouring tokens share a codebook
            token = token / token.norm()
            cosines = [(token * word.detach()).sum() for word in book]  # the choice teaches the codewords nothing
            weights = [(cosine / TEMPERATURE).exp() for cosine in cosines]
            row.append(sum(weight / sum(weights) * word for weight, word in zip(weights, book)))
            cold = [(cosine / COLD).exp() for cosine in cosines]
            share = torch.stack([weight / sum(cold) for weight in cold])
            entropies.append(-(share * share.log()).sum())
            shares.append(share)
        soft.append(torch.stack(row))
    mean = sum(shares) / len(shares)  # over all tokens, whatever their codebook
    return torch.stack(soft), sum(entropies) / len(entropies) + (mean * mean.log()).sum()


@pytest.fixture
def book(generator) -> SegmentCodebooks:
    made = SegmentCodebooks(SegmentCodebooksConfig(CODEBOOKS, SIZE, TEMPERATURE), TOKENS, CHANNELS)
    made.codewords.data = torch.randn(CODEBOOKS, SIZE, CHANNELS, generator=generator)
    return made


def test_latents_entropy_and_every_gradient_are_those_of_the_equations_token_by_token(book, generator):
    latents = torch.randn(BATCH, TOKENS, CHANNELS, generator=generator, requires_grad=True)
    pull = torch.randn(BATCH, TOKENS, CHANNELS, generator=generator)
    soft, metrics = book(latents)
    entropy = pooled_entropy_loss(metrics["codeword_similarity"], COLD, World())
    twins = [tensor.detach().double().requires_grad_() for tensor in (latents, book.codewords)]
    slow, slow_entropy = restated(*twins)
    torch.testing.assert_close(soft.double(), slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), slow_entropy, rtol=1e-5, atol=1e-6)
    inputs = (latents, book.codewords)
    for fast, plain in ((soft, slow), (entropy, slow_entropy)):
        value = (fast * pull).sum() if fast.dim() else fast
        wanted = (plain * pull.double()).sum() if plain.dim() else plain
        found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(wanted, twins, retain_graph=True, allow_unused=True)
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_the_entropy_part_moves_latents_and_no_codeword(book, generator):
    latents = torch.randn(BATCH, TOKENS, CHANNELS, generator=generator, requires_grad=True)
    pooled_entropy_loss(book(latents)[1]["codeword_similarity"], 0.01, World()).backward()
    assert latents.grad.abs().sum() > 0 and book.codewords.grad is None


def test_a_token_sees_the_codebook_of_its_segment_and_no_other(book, generator):
    latents = torch.randn(1, TOKENS, CHANNELS, generator=generator)
    before = book(latents)[0]
    book.codewords.data[1].neg_()
    changed = (book(latents)[0] != before).any(-1)[0].tolist()
    assert changed == [False, False, True, True, False, False]


def test_latents_are_as_wide_as_a_codeword_and_no_longer(book, generator):
    soft, _ = book(100 * torch.randn(50, TOKENS, CHANNELS, generator=generator))
    assert soft.norm(dim=-1).max() <= 1 + 1e-5
    book.temperature = 1e-4  # then each is its nearest codeword
    norms = book(torch.randn(50, TOKENS, CHANNELS, generator=generator))[0].norm(dim=-1)
    assert norms.median().item() == pytest.approx(1, abs=1e-4)


def test_all_codebooks_are_pooled_so_that_codeword_s_of_each_counts_as_one():
    sure = torch.full((1, 4, 8), -1.0)
    for token, word in enumerate((0, 1, 2, 3)):
        sure[0, token, word] = 1.0
    assert pooled_entropy_loss(sure, 0.01, World()).item() == pytest.approx(-math.log(4), abs=1e-5)
    same = torch.full((1, 4, 8), -1.0)
    same[..., 5] = 1.0
    assert pooled_entropy_loss(same, 0.01, World()).item() == pytest.approx(0, abs=1e-5)


def test_a_codeword_that_nobody_takes_leaves_the_gradient_finite():
    similarity = torch.tensor([[[1.0, -1.0, -1.0]]], requires_grad=True)  # shares of exp(-200): 0 in float32
    pooled_entropy_loss(similarity, 0.01, World()).backward()
    assert torch.isfinite(similarity.grad).all()
    mean = torch.tensor([1.0, 0.0], requires_grad=True)
    entropy_loss(torch.zeros(()), mean).backward()
    assert torch.isfinite(mean.grad).all()


def test_the_term_is_entropy_and_the_cosine_distance_of_every_token_to_its_four_patches(generator):
    torch.manual_seed(0)
    config = SoftVQConfig(codebooks=3, size=SIZE, entropy_weight=0.01, alignment_weight=0.1, hidden=8)
    regulariser = config.build(context())
    latents = torch.randn(2, TOKENS, CHANNELS, generator=generator)
    similarity = torch.rand(2, TOKENS, SIZE, generator=generator)
    patches = torch.randn(2, 4 * TOKENS, 3, generator=generator)
    read, distances = regulariser.head.project(latents), []
    for image in range(2):
        for patch in range(4 * TOKENS):
            a, b = read[image, patch // 4], patches[image, patch]
            distances.append(1 - (a @ b / a.norm() / b.norm()).item())
    expected = 0.01 * pooled_entropy_loss(similarity, 0.01, World()).item() + 0.1 * sum(distances) / len(distances)
    encoded = Encoded(latents, latents, None, latents, {"codeword_similarity": similarity})
    term = regulariser.term(encoded, {"feature_patches": patches}, StepRandom(0, 0))
    assert term.item() == pytest.approx(expected, rel=1e-5)


def test_what_does_not_divide_is_refused_with_the_way_out():
    with pytest.raises(UserError, match="6 tokens do not divide into segments for 4 codebooks.*soft_pq"):
        SoftVQConfig(codebooks=4).build(context())

    class Odd(Sizes):
        patches = 25

    with pytest.raises(UserError, match="25 patches do not divide among 6 tokens"):
        SoftVQConfig(codebooks=3, alignment_weight=0.1).build(context(features=Odd))


def test_an_autoencoder_saved_with_codebooks_of_channels_encodes_as_it_did(tmp_path, generator):
    model = build_config(AutoencoderConfig, to_dict(MODEL) | {"channels": 6})
    model.latent_map.name, model.latent_map.soft_codebook.codebooks, model.latent_map.soft_codebook.size = (
        "soft_codebook",
        2,
        5,
    )
    torch.manual_seed(0)
    autoencoder = Autoencoder(model).eval()
    images = torch.rand(2, 3, 16, 16, generator=generator)
    latents = autoencoder.encode(images)
    autoencoder.save(tmp_path)
    file = tmp_path / "config.json"  # as it was written when there was no other map
    written = json.loads(file.read_text())
    del written["sizes"]["latent_map"]["segment_codebooks"]
    file.write_text(json.dumps(written))
    loaded = Autoencoder.load(tmp_path)
    assert torch.equal(loaded.encode(images), latents)
    code = loaded.encoder(images)
    words = torch.nn.functional.normalize(loaded.latent_maps[0].codewords, dim=-1)  # (2, 5, 3)
    for half in range(2):
        part = torch.nn.functional.normalize(code[..., 3 * half : 3 * half + 3], dim=-1)
        share = (part @ words[half].T / 0.07).softmax(-1)
        torch.testing.assert_close(latents[..., 3 * half : 3 * half + 3], share @ words[half])


def test_a_run_begun_with_codebooks_of_channels_is_refused_with_their_name():
    new = to_dict(build_config(AEConfig, {"regulariser": {"name": "softvq"}}))
    old = json.loads(json.dumps(new))
    assert changed_options(AEConfig, old, new) == []
    del old["regulariser"]["softvq"]["entropy_temperature"], old["regulariser"]["soft_pq"]
    [row] = changed_options(AEConfig, old, new)
    assert "regulariser.softvq.entropy_temperature" in row and "regulariser.name=soft_pq" in row


def test_softvq_says_when_training_starts_what_its_codebooks_serve():
    config = build_config(RegulariserConfig, {"name": "softvq", "softvq": {"codebooks": 3, "size": 7}})
    note = config.softvq.build(context()).note
    assert "3 codebooks of 7 x 5, each for 2 of the 6 tokens" in note and "\n" not in note
