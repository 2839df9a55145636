"""What the sampler leaves out without training: evaluations of the head, features of the decoder, guidance that is too strong."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mar.head import guide
from mar.model import MAR
from mar.sampler import evaluations, known_after_steps, sample_latents
from slow_mar import LABELS, SEEDS, TOKENS, settings, slowly, small_mar

FALLING = {"head_evaluations": 6, "head_evaluations_last": 2}


@pytest.fixture(scope="module")
def model() -> MAR:
    return small_mar(encoder_depth=2, decoder_depth=3)


def flops(model: MAR, **options) -> int:
    with FlopCounterMode(display=False) as counter:
        sample_latents(model, LABELS, SEEDS, 3.0, settings(ar_steps=5, **options))
    return counter.get_total_flops()


@given(st.integers(1, 40).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, first))), st.integers(1, 99))
def test_evaluations_fall_from_the_first_number_to_the_last_by_the_share_of_known_tokens(numbers, tokens):
    first, last = numbers
    config = settings(head_evaluations=first, head_evaluations_last=last)
    counts = [evaluations(config, known, tokens) for known in range(tokens + 1)]
    assert counts[0] == first and counts[-1] == last
    exact = [first + (last - first) * known / tokens for known in range(tokens + 1)]
    assert all(abs(count - wanted) <= 0.5 + 1e-9 for count, wanted in zip(counts, exact))
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("cfg", [None, 2.5])
@pytest.mark.parametrize("options", [FALLING, {"head_evaluations": 3, "head_evaluations_last": 1, "ar_steps": 5}])
def test_with_falling_evaluations_samples_are_those_of_the_slow_sampler(model, options, cfg):
    config = settings(**options)
    expected = torch.stack([slowly(model, label, seed, cfg, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, cfg or 1.0, config), expected, rtol=1e-4, atol=1e-5)


def test_falling_to_the_number_that_they_start_from_is_not_falling(model):
    same = sample_latents(model, LABELS, SEEDS, 2.0, settings(head_evaluations=4, head_evaluations_last=4))
    assert torch.equal(same, sample_latents(model, LABELS, SEEDS, 2.0, settings(head_evaluations=4)))


@pytest.mark.parametrize("damping", [0.1, 1.0, 20.0])
def test_with_damped_guidance_samples_are_those_of_the_slow_sampler(model, damping):
    config = settings(cfg_damping=damping, cfg_schedule="constant")
    expected = torch.stack([slowly(model, label, seed, 3.0, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, 3.0, config), expected, rtol=1e-4, atol=1e-5)


def test_damping_leaves_the_scale_where_the_velocities_agree_and_ends_at_no_guidance(generator):
    conditional, unconditional = torch.randn(2, 4, 5, 3, generator=generator)
    plain = unconditional + 3.0 * (conditional - unconditional)
    assert torch.equal(guide(conditional, unconditional, 3.0, 0.0), plain)
    near = guide(unconditional + 1e-4 * conditional, unconditional, 3.0, 1.0)
    torch.testing.assert_close(near, unconditional + 3e-4 * conditional, rtol=0, atol=1e-6)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0, 1e6), conditional)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0, 0.7), conditional)
    assert guide(conditional, torch.zeros(4, 5, 3), 3.0, 1.0).isfinite().all()


def reusing_context(model: MAR, every: int):
    """Conditions with partial decodings, position by position: what ``decoder_every`` means, for one label."""

    def of_label(label):
        state = {"count": 0, "known": 0, "kept": None}

        def conditions(latents, known, wanted):
            if state["known"] == 0 or state["count"] % every == 0:
                state["kept"] = [{} for _ in model.decoder]
            places = torch.tensor([known], dtype=torch.long)
            encoded = model.encode(latents, torch.tensor([label]), places)
            x = model.decoder_input(encoded, places)[0]  # (buffer + T, W)
            buffer = model.config.buffer_tokens
            computed = range(len(x)) if not state["kept"][0] else [p + buffer for p in known[state["known"] :] + wanted]
            x = {position: x[position] for position in computed}
            for block, kept in zip(model.decoder, state["kept"]):
                x = decode_block(block, x, kept)
            state["known"], state["count"] = len(known), state["count"] + (len(known) > 0)
            return torch.stack([model.decoder_norm(x[p + buffer]) + model.head_positions[0, p] for p in wanted])

        return conditions

    return of_label


def decode_block(block, x, kept):
    """One block on the positions in ``x``, whose keys and values replace those kept of all positions."""
    attention, queries = block.attn, {}
    for position, token in x.items():
        q, k, v = attention.qkv(block.norm1(token)).view(3, attention.num_heads, -1)
        queries[position], kept[position] = attention.q_norm(q), (attention.k_norm(k), v)
    keys, values = (torch.stack([kept[p][part] for p in sorted(kept)], dim=1) for part in (0, 1))  # (heads, N, d)
    out = {}
    for position, token in x.items():
        weights = F.softmax((keys @ queries[position].unsqueeze(-1)).squeeze(-1) / keys.shape[-1] ** 0.5, dim=-1)
        token = token + attention.proj((weights.unsqueeze(1) @ values).flatten())
        out[position] = token + block.mlp(block.norm2(token))
    return out


@pytest.mark.parametrize("cfg", [None, 2.5])
@pytest.mark.parametrize("every, steps", [(2, 5), (3, 5), (9, 5), (9, 3)])
def test_with_kept_features_of_the_decoder_samples_are_those_of_the_slow_sampler(model, every, steps, cfg):
    config = settings(decoder_every=every, ar_steps=steps)
    context = reusing_context(model, every)
    expected = torch.stack(
        [slowly(model, label, seed, cfg, config, context) for label, seed in zip(LABELS.tolist(), SEEDS)]
    )
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, cfg or 1.0, config), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_a_decoder_renewed_so_often_that_nothing_is_reused_is_the_plain_path_and_a_rarer_one_is_near_it(model, first):
    plain = sample_latents(model, LABELS, SEEDS, 2.0, settings(ar_steps=5))
    rare = sample_latents(model, LABELS, SEEDS, 2.0, settings(ar_steps=5, decoder_every=5, share_first=first))
    order = torch.stack([torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    error = (rare - plain).abs().mean(2).gather(1, order).mean(0)  # (T,), one token a step
    assert error[:2].max() < 1e-5, "nothing is reused before the third step"
    assert 1e-4 < error[2:].mean() < 0.5 * plain.std()
    two_steps = settings(ar_steps=2, decoder_every=7, share_first=first)
    torch.testing.assert_close(
        sample_latents(model, LABELS, SEEDS, 2.0, two_steps),
        sample_latents(model, LABELS, SEEDS, 2.0, settings(ar_steps=2)),
        rtol=1e-4,
        atol=1e-5,
    )


OPTIONS = [FALLING, {"cfg_damping": 0.5}, {"decoder_every": 2}, {"decoder_every": 3, "encoder_every": 3}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("batch", [1, 4])
def test_a_sample_is_the_same_at_any_batch_size(model, options, batch):
    config = settings(ar_steps=5, **options)
    whole = sample_latents(model, LABELS, SEEDS, 3.0, config)
    parts = [
        sample_latents(model, LABELS[i : i + batch], SEEDS[i : i + batch], 3.0, config) for i in range(0, 6, batch)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saving", ["skip_unread", "share_first", "one_batch", "share_times"])
def test_exact_savings_are_exact_beside_kept_features(model, saving):
    config = {"ar_steps": 5, "decoder_every": 3, "encoder_every": 2}
    labels = torch.tensor([3, 1, 3, 3, 0, 1])
    found = [sample_latents(model, labels, SEEDS, 3.0, settings(**config, **{saving: on})) for on in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_falling_evaluations_and_kept_features_save_arithmetic(model):
    assert flops(model, **FALLING) < flops(model, head_evaluations=6)
    assert flops(model, decoder_every=2) < flops(model)
    assert flops(model, decoder_every=5) < flops(model, decoder_every=2)


def test_the_head_is_evaluated_in_every_step_as_often_as_the_share_of_known_tokens_says(model):
    calls = []
    hook = model.head.input.register_forward_hook(lambda *_: calls.append(1))
    sample_latents(model, LABELS, SEEDS, 1.0, settings(ar_steps=4, solver="heun", **FALLING))
    hook.remove()
    known = [0, *known_after_steps(TOKENS, 4)[:-1]]
    assert len(calls) == sum(round(6 - 4 * k / TOKENS) for k in known)
