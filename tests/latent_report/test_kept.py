"""A report that was stopped goes on, and figures that were made from something else are measured anew."""

import json

import numpy as np
import pytest

import latent_report.__main__ as command
from flowprior.errors import Terminated
from flowprior.notes import forget_notes
from latent_report.__main__ import write_report
from latent_report.config import ReportConfig
from latent_report.flows import FlowBudget
from tests.latent_report.test_report import small_autoencoder

SMALL = FlowBudget(steps=2, images=8, width=8, depth=1, times=4)


def report(names, out, **options):
    """What the command writes, without the seconds."""
    forget_notes()
    write_report(names, ReportConfig(out=str(out), images=24, flow=SMALL, resamples=2, noise_shares=(0.4,), **options))
    written = json.loads((out / "report.json").read_text())
    for tokenizer in written["tokenizers"]:
        del tokenizer["seconds"]
    written["protocol"]["options"].pop("out")
    return written, (out / "report.html").read_text().replace(str(out), "out")


@pytest.fixture
def tokenizers(tmp_path):
    small_autoencoder().save(tmp_path / "ae" / "autoencoder")
    latents = np.random.default_rng(0).normal(size=(24, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "bare.npz", latents=latents)
    return [str(tmp_path / "bare.npz"), str(tmp_path / "ae")]


def stop_at(monkeypatch, group):
    """Let SIGTERM come as ``group`` begins, of latents with images."""
    measure = command.MEASURES[group]

    def stopped(measured, results):
        if measured.latents.images is not None:
            raise Terminated
        measure(measured, results)

    monkeypatch.setitem(command.MEASURES, group, stopped)


def leave_out_all_but_distribution(monkeypatch):
    """For what every group shares, one of the quick ones."""
    for group in command.MEASURES.keys() - {"distribution"}:
        monkeypatch.setitem(command.MEASURES, group, lambda measured, results: None)


def test_a_report_that_was_stopped_goes_on_after_what_was_measured_and_ends_as_an_undisturbed_one(
    tokenizers, tmp_path, monkeypatch, capfd
):
    whole = report(tokenizers, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Terminated):
        stop_at(patched, "flow")
        report(tokenizers, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "report.json").exists()
    capfd.readouterr()

    with monkeypatch.context() as patched:
        for group in ("reconstruction", "distribution", "dependence"):
            patched.setitem(command.MEASURES, group, lambda *_: pytest.fail("measured twice"))
        assert report(tokenizers, tmp_path / "stopped") == whole
    said = capfd.readouterr().err
    assert "bare.npz: its figures are kept as they were measured" in said
    assert (
        "ae: reconstruction, distribution, dependence kept as measured before it was stopped; the rest follows" in said
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: {"seed": 1}, "since seed: 0 -> 1 changed"),
        (lambda folder: small_autoencoder(1).save(folder / "ae" / "autoencoder") or {}, "since its files changed"),
        (lambda folder: cut(*folder.glob("out/measured/*.safetensors")), "what was kept of it is damaged"),
        (
            lambda folder: {"extractor": "mnist"},
            "since weights of the extractor, LPIPS or features; extractor:  -> mnist",
        ),
    ],
)
def test_figures_that_were_made_from_something_else_are_measured_anew_and_it_is_said(
    tokenizers, tmp_path, capfd, monkeypatch, change, said
):
    name = tokenizers[1]
    leave_out_all_but_distribution(monkeypatch)
    report([name], tmp_path / "out")
    options = change(tmp_path)
    capfd.readouterr()
    again = report([name], tmp_path / "out", **options)
    assert said in capfd.readouterr().err
    assert again == report([name], tmp_path / "anew", **options)


def cut(file):
    """Leave the last bytes out; no option of the report changes."""
    file.write_bytes(file.read_bytes()[:-10])
    return {}


def test_a_report_with_a_further_tokenizer_keeps_what_it_said_of_the_others(tokenizers, tmp_path, monkeypatch):
    bare, other = tokenizers
    leave_out_all_but_distribution(monkeypatch)
    before, _ = report([bare], tmp_path)
    assert "kurtosis" in before["tokenizers"][0]["figures"]
    monkeypatch.setattr(command, "MEASURES", dict.fromkeys(command.MEASURES, lambda measured, results: None))
    both, _ = report([bare, other], tmp_path)
    for name in ("figures", "curves", "left_out"):
        assert both["tokenizers"][0][name] == before["tokenizers"][0][name]
    assert both["tokenizers"][1]["figures"] == {}
