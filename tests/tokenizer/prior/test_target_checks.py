"""What stage 2 needs of a prior is checked when the prior is made; whole images of a file are held out."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowprior import FlowPrior
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow import target_map
from flowprior.flow.target_map import TargetMapSettings, count_bad_rows, fit_target_map
from flowprior.run.config import apply_overrides, build_config
from flowprior.training.randomness import stream_seed
from networks import random_prior
from tokenizer.monitor import check_samples
from tokenizer.prior import train_flowhead
from tokenizer.prior.held_out import split_rows
from tokenizer.prior.targets.base import TargetContext, TargetFeatures
from tokenizer.prior.targets.codebook import CodebookTarget
from tokenizer.prior.targets.digits_semantic import DigitsSemanticTarget
from tokenizer.prior.targets.file import FileTarget
from tokenizer.prior.train_flowhead import check_prior, check_target

SHORT = [
    "channels=4",
    "width=8",
    "depth=1",
    "group_size=4",
    "train={steps: 2, global_batch: 16, eval_steps: 0, tensorboard: false}",
]


@pytest.fixture
def stage_1(tmp_path, monkeypatch, capsys):
    """Run stage 1 on a table; its exit code and what it said."""

    def call(table: np.ndarray, *words: str) -> tuple[int, str]:
        np.save(tmp_path / "table.npy", table)
        own = ["target.source=file", f"target.file.path={tmp_path / 'table.npy'}", f"run_dir={tmp_path / 'run'}"]
        monkeypatch.setattr(sys, "argv", ["train_flowhead", *SHORT, *own, *words])
        try:
            train_flowhead.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def config_of(words: list[str]) -> train_flowhead.FlowPriorConfig:
    return build_config(train_flowhead.FlowPriorConfig, apply_overrides({}, words))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_nan_in_rows_that_the_statistics_do_not_see_is_refused_with_its_place(stage_1, tmp_path):
    count = 201_000
    drawn = torch.randint(
        count, (200_000,), generator=torch.Generator().manual_seed(stream_seed(0, "target statistics"))
    )
    unseen = sorted(set(range(count)) - set(drawn.tolist()))[:3]
    table = normal(count, 4).astype(np.float16)
    table[unseen, 2] = [np.nan, np.inf, -np.inf]
    code, said = stage_1(table)
    assert code == 2 and said.count("\n") == 1
    assert (
        f"table.npy holds values that are NaN or infinite in float32 in 3 of its {count} rows, first in row {unseen[0]}"
        in said
    )
    assert not (tmp_path / "run" / "flowhead" / "config.yaml").exists()


@pytest.mark.parametrize("count, code", [(4, 2), (5, 0)])
def test_a_target_of_fewer_rows_than_the_kth_neighbour_is_refused(stage_1, tmp_path, count, code):
    found, said = stage_1(normal(count, 6))
    assert found == code
    assert ("has 4 rows" in said and "5 rows or more" in said) == (code == 2)
    assert (tmp_path / "run" / "flowhead" / "result.json").is_file() == (code == 0)


@pytest.mark.parametrize("rows_at_once", [1, 7, 64, 1000])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_row_is_looked_at_once_by_some_process(monkeypatch, rows_at_once, parts):
    monkeypatch.setattr(target_map, "ROWS_AT_ONCE", rows_at_once)
    features = torch.from_numpy(normal(100, 3))
    assert [count_bad_rows(features, part, parts) for part in range(parts)] == [(0, -1)] * parts
    for row in (0, 41, 99):
        features[row, 1] = float("nan")
    found = [count_bad_rows(features, part, parts) for part in range(parts)]
    assert sum(count for count, _ in found) == 3 and min(first for count, first in found if count) == 0


def test_finite_numbers_whose_sum_is_not_are_no_bad_rows():
    assert count_bad_rows(torch.full((9, 4), 3e38)) == (0, -1)
    assert count_bad_rows(torch.full((9, 4), 1e39, dtype=torch.float64)) == (
        9,
        0,
    )  # infinite in float32, which the flow sees


@pytest.mark.parametrize(
    "words, said",
    [
        (["data.subset=train"], "'digits_semantic' is made of all embedded digits: data.subset=train leaves none out"),
        (
            ["data.subset=train", "target.source=codebook", "target.codebook={of: digits_lowlevel, clusters: 2}"],
            "'codebook' is made of all",
        ),
        (["data.subset=train", "target.source=codebook", "target.codebook={of: patches, clusters: 2}"], ""),
        (["data.subset=all"], ""),
        (["data.subset=train", "target.source=word_vectors"], ""),
    ],
)
def test_a_part_of_the_digits_that_a_target_of_all_of_them_does_not_heed_is_named(words, said, capsys):
    train_flowhead.check_images_are_used(config_of(words))
    noted = capsys.readouterr().err
    assert said in noted and bool(noted) == bool(said)


@pytest.mark.parametrize("of, refused", [("digits", True), ("mnist", False)])
def test_a_target_of_other_embedded_images_than_are_named_is_refused(of, refused):
    config = config_of(["data.source=mnist", "target.source=digits_semantic", f"target.digits_semantic.of={of}"])
    with pytest.raises(UserError, match="of=mnist") if refused else contextlib.nullcontext():
        train_flowhead.check_images_are_used(config)


class Half(World):
    """One of two processes, which looked at the other's half before."""

    def all_gather(self, value):
        return [value, (1, 3)]


def test_what_another_process_found_stops_all():
    with pytest.raises(UserError, match="in 1 of its 9 rows, first in row 3"):
        check_target(TargetFeatures(torch.zeros(9, 2), "t"), Half(0, 2))
    check_target(
        TargetFeatures(torch.full((9, 2), float("nan")), "t", known_finite=True), Half(0, 2)
    )  # not looked at again


def test_the_library_refuses_nan_in_any_row():
    features = torch.from_numpy(normal(200_500, 2))
    features[123_456] = float("nan")
    with pytest.raises(ValueError, match="1 of 200500 rows, first in row 123456"):
        fit_target_map(features, TargetMapSettings(2))
    with pytest.raises(ValueError, match="first in row 123456"):
        FlowPrior.fit(features, channels=2, steps=1, progress=False)


def test_a_prior_is_fitted_to_features_that_require_gradients_as_to_those_that_do_not():
    features = torch.from_numpy(normal(64, 6))
    layer = torch.nn.Linear(6, 6)
    options = {"channels": 3, "width": 8, "depth": 1, "steps": 3, "batch_size": 16, "progress": False}
    attached = FlowPrior.fit(layer(features), **options)
    assert attached.fingerprint == FlowPrior.fit(layer(features).detach(), **options).fingerprint
    assert layer.weight.grad is None and not fit_target_map(layer(features), TargetMapSettings(3)).mean.requires_grad


def test_a_prior_whose_samples_are_not_finite_is_not_kept():
    prior, points = random_prior(3), torch.zeros(5, 3)
    check_prior(prior, points, points)
    with pytest.raises(UserError, match="samples are not finite"):
        check_prior(prior, points, points + float("nan"))
    prior.velocity.get_parameter(next(name for name, _ in prior.velocity.named_parameters())).data.fill_(float("inf"))
    with pytest.raises(UserError, match="weights are not finite"):
        check_prior(prior, points, points)


@pytest.mark.parametrize(
    "samples, words",
    [
        (torch.zeros(9, 4), "have 4 channels and the prior has 3"),
        (torch.full((9, 3), float("nan")), "are not finite"),
        (torch.zeros(4, 3), "write monitor.neighbour=4"),
    ],
)
def test_target_samples_that_latents_cannot_be_compared_with_are_named(samples, words):
    check_samples(torch.zeros(5, 3), Path("target_samples.safetensors"), 5, 3)
    with pytest.raises(UserError, match=words):
        check_samples(samples, Path("target_samples.safetensors"), 5, 3)


def load(folder: Path, array: np.ndarray, **options) -> TargetFeatures:
    np.save(folder / "t.npy", array)
    return FileTarget(path=str(folder / "t.npy"), **options).load(None)


def test_of_images_tokens_channels_whole_images_are_held_out(tmp_path):
    rng = np.random.default_rng(0)
    images = 3 * rng.standard_normal((40, 1, 16)) + 0.02 * rng.standard_normal((40, 49, 16))
    target = load(tmp_path, images.astype(np.float32))
    assert target.rows_per_sample == 49 and target.features.shape == (1960, 16)
    split = split_rows(1960, 0.1, 0, target.rows_per_sample)
    assert not set((split.held_out // 49).tolist()) & set((split.train // 49).tolist())
    nearest = torch.cdist(target.features[split.held_out], target.features[split.train]).min(1).values.mean()
    assert nearest.item() == pytest.approx(12.42, abs=0.01)


def test_of_a_flat_table_a_person_can_say_which_rows_are_one_image(tmp_path):
    assert load(tmp_path, normal(12, 3)).rows_per_sample == 1
    assert load(tmp_path, normal(12, 3), rows_per_sample=4).rows_per_sample == 4
    with pytest.raises(UserError, match="12 rows, which are no multiple of 5"):
        load(tmp_path, normal(12, 3), rows_per_sample=5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_arrays_whose_channels_may_be_anywhere_are_refused(tmp_path, shape):
    with pytest.raises(UserError, match=r"t.npy has shape .*save it as \(images, tokens, channels\)"):
        load(tmp_path, normal(*shape))


def test_sparse_features_are_refused_in_a_sentence(tmp_path):
    torch.save(torch.eye(4).to_sparse(), tmp_path / "s.pt")
    with pytest.raises(UserError, match="s.pt .*dense"):
        FileTarget(path=str(tmp_path / "s.pt")).load(None)


def test_positions_of_one_digit_are_held_out_together(tmp_path):
    context = TargetContext(0, tmp_path, World())
    made = DigitsSemanticTarget(image_size=16, width=8, steps=1).load(context)
    again = DigitsSemanticTarget(image_size=16, width=8, steps=1).load(context)  # read from its folder
    assert made.rows_per_sample == again.rows_per_sample == 4 and made.features.shape == (1797 * 4, 8)


def test_the_held_out_images_of_a_file_reach_the_stages_result(stage_1, tmp_path):
    assert stage_1(normal(20, 6, 5), "held_out=0.2")[0] == 0
    result = json.loads((tmp_path / "run" / "flowhead" / "result.json").read_text())
    assert result["compared_with"] == "held-out rows" and result["target"]["count"] == 120


def test_a_codebook_is_not_made_of_a_table_with_nan_in_rows_that_are_not_drawn(tmp_path):
    table = normal(2000, 3)
    table[1234] = np.nan
    np.save(tmp_path / "t.npy", table)
    target = CodebookTarget(path=str(tmp_path / "t.npy"), clusters=2)  # of 512 rows
    with pytest.raises(UserError, match="1 of its 2000 rows, first in row 1234"):
        target.load(TargetContext(0, tmp_path, World()))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (normal(60, 8), ""),
        (normal(60, 2), "the target has 2 channels and the flow 4: it fills a subspace"),
        (normal(20, 60), "the table has 20 rows of 60 channels: each row counts as a sample"),
        (normal(4, 8).repeat(20, 0), "76 of the 80 rows looked at repeat others"),
        (
            normal(60, 8) * np.array([1e6] + [1] * 7, np.float32),
            "the projected target varies along 1.0 of 4 directions",
        ),
    ],
)
def test_what_is_odd_about_a_target_is_said_in_one_line_and_the_usual_in_none(stage_1, table, told):
    code, said = stage_1(table, "channels=4")
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert code == 0 and len(notes) == bool(told) and told in said


def test_a_codebook_may_have_fewer_entries_than_channels_without_a_word(stage_1, tmp_path):
    np.save(tmp_path / "codes.npy", normal(64, 512))
    words = ("target.source=codebook", f"target.codebook.path={tmp_path / 'codes.npy'}", "channels=4")
    code, said = stage_1(normal(5, 5), *words)
    assert code == 0 and "note: " not in said


def test_a_prior_that_is_gone_is_made_again_from_the_last_checkpoint(stage_1, tmp_path):
    table, prior = normal(200, 6), tmp_path / "run" / "flowhead" / "prior"
    assert stage_1(table)[0] == 0
    fingerprint = FlowPrior.load(prior).fingerprint
    shutil.rmtree(prior)
    assert stage_1(table)[0] == 0 and FlowPrior.load(prior).fingerprint == fingerprint
