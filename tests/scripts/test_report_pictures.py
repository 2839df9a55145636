"""No words of a report's picture stand on or against one another."""

import itertools
import json
import math

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from scripts import report_pictures as report  # noqa: E402

NAMES = {
    "flowhead": ["loss"],
    "ae": ["loss", "l2", "flow", "alignment", "knn_log_distance", "latent_std", "latent_mean", "latent_effective_rank"],
    "mar": ["loss"],
}


@pytest.fixture
def run(tmp_path):
    for stage, names in NAMES.items():
        (tmp_path / stage).mkdir()
        rows = [
            {"step": 100 * i} | {name: math.exp(-i / 3) - 0.5 * (name[0] == "k") for name in names} for i in range(12)
        ]
        (tmp_path / stage / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "latents").mkdir()
    statistics = {"channel_std": [1.0, 0.9, 1.1], "scale": 0.987}
    (tmp_path / "latents" / "manifest.json").write_text(json.dumps({"statistics": statistics}))
    return tmp_path


def test_a_term_that_ends_before_training_is_drawn_as_far_as_it_goes(run):
    file = run / "ae" / "log.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[5:]:
        del row["flow"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure, axes = report.plt.subplots(1, 3)
    report.draw_losses(axes, run)
    lengths = {line.get_label(): len(line.get_xdata()) for line in axes[1].get_lines()}
    report.plt.close(figure)
    assert lengths["flow"] == 5 and lengths["l2"] == 12


def test_a_term_below_zero_is_seen(run):
    file = run / "ae" / "log.jsonl"
    rows = [json.loads(line) | {"adversarial": -0.4} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure, axes = report.plt.subplots(1, 3)
    report.draw_losses(axes, run)
    low, _ = axes[1].get_ylim()
    report.plt.close(figure)
    assert low < -0.4


def test_every_term_is_drawn_however_many_there_are_and_whenever_each_begins(run):
    file, further = run / "ae" / "log.jsonl", ["lpips", "adversarial", "features", "kl"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[7:]:
        row |= dict.fromkeys(further, 1.0)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure, axes = report.plt.subplots(1, 3)
    report.draw_losses(axes, run)
    lengths = {line.get_label(): len(line.get_xdata()) for line in axes[1].get_lines()}
    report.plt.close(figure)
    assert lengths == dict.fromkeys(NAMES["ae"], 12) | dict.fromkeys(further, 5)


@pytest.mark.parametrize(
    "draw, panels",
    [(report.draw_alignment, 2), (report.draw_losses, 3), (report.draw_latents, 2), (report.draw_cache, 1)],
)
def test_words_keep_a_lines_height_from_one_another(draw, panels, run, monkeypatch):
    boxes = {}

    def measured(figure) -> bytes:
        figure.draw_without_rendering()
        for axes in figure.axes:
            for words in (axes.title, axes.xaxis.label, axes.yaxis.label):
                if words.get_text():
                    boxes[words.get_text(), len(boxes)] = words.get_window_extent().padded(figure.dpi * 5 / 72)
        return b""

    monkeypatch.setattr(report, "figure_png", measured)
    report.curves(run, draw, panels)
    assert len(boxes) >= 2 * panels
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not first.overlaps(second), (one, other)
