"""The flow's two scripts, as a person runs them."""

import json
import re
import shutil

import pytest

FLOW = "{width: 12, heads: 2, depths: [1, 1], dropout: 0.0}"
SAMPLE = ["sample={count: 20, cfg: [1, 2], preview_images: 10}", "evaluate={extractor: digits, metrics: [fid]}"]
TRAIN = "train={steps: 10, global_batch: 16, checkpoint_steps: 5, eval_steps: 5, log_steps: 5, tensorboard: false}"
JOINT = [
    "model={tokens: 4, channels: 4, encoder: {width: 12, depth: 1, heads: 3}, decoder: {width: 12, depth: 1, heads: 3}}",
    f"regulariser.simflow.flow={FLOW}",
    "monitor={images: 16, metrics: [fidelity]}",
    "evaluate.metrics=[fidelity]",
    TRAIN,
]


@pytest.fixture(scope="module")
def joint(scripts, tmp_path_factory):
    run = tmp_path_factory.mktemp("joint")
    result = scripts.run("train_simflow", *JOINT, "--", *SAMPLE, run_dir=run, tiny=False)
    assert result.returncode == 0, result.stderr
    return run


def fids(run) -> dict:
    return {
        cfg: m["fid"] for cfg, m in json.loads((run / "simflow" / "evaluation.json").read_text())["metrics"].items()
    }


def test_one_script_trains_both_and_measures_both_and_run_again_it_touches_nothing(joint, scripts, snapshot):
    assert {"psnr", "ssim"} <= set(json.loads((joint / "ae" / "evaluation.json").read_text())["metrics"])
    assert set(fids(joint)) == {"1", "2"} and not (joint / "latents").exists()
    before = snapshot(joint)
    again = scripts.run("train_simflow", *JOINT, "--", *SAMPLE, run_dir=joint, tiny=False)
    assert again.returncode == 0 and again.stdout.count("complete") == 5
    assert snapshot(joint) == before


def test_two_processes_train_and_measure_as_one_does(joint, scripts, tmp_path):
    result = scripts.run("train_simflow", *JOINT, "--", *SAMPLE, run_dir=tmp_path, tiny=False, NPROC="2")
    assert result.returncode == 0, result.stderr
    assert fids(tmp_path) == pytest.approx(fids(joint), rel=0.02)


def test_the_flow_on_cached_latents_has_a_script_of_its_own(joint, scripts, tmp_path):
    words = [f"autoencoder={joint / 'ae' / 'autoencoder'}", f"model.tarflow={FLOW}", TRAIN, *SAMPLE]
    result = scripts.run("train_tarflow", *words, run_dir=tmp_path, tiny=False)
    assert result.returncode == 0, result.stderr
    assert set(fids(tmp_path)) == {"1", "2"} and (tmp_path / "latents" / "manifest.json").is_file()


def test_the_report_of_a_run_shows_what_it_has(joint, scripts, tmp_path, capsys, monkeypatch):
    from scripts import report

    def said_of(run):
        monkeypatch.setattr("sys.argv", ["report.py", str(run)])
        report.main()
        return capsys.readouterr().out, (run / "report.html").read_text()

    table, page = said_of(joint)
    assert "autoregressive flow, cfg 1" in table and re.search(r"training time +ae \d+ s\n", table)
    assert "<h2>Autoencoder" in page and "<h2>Flow prior" not in page and page.count("<img") == 5
    words = [f"autoencoder={joint / 'ae' / 'autoencoder'}", f"model.tarflow={FLOW}", TRAIN, *SAMPLE]
    assert scripts.run("train_tarflow", *words, run_dir=tmp_path, tiny=False).returncode == 0
    table, page = said_of(tmp_path)
    assert "autoencoder" not in table and re.search(r"training time +simflow \d+ s\n", table)
    assert "<h2>Autoencoder" not in page and page.count("<img") == 4
    unfinished = tmp_path / "unfinished"
    shutil.copytree(joint, unfinished)
    (unfinished / "ae" / "result.json").unlink()
    with pytest.raises(SystemExit) as ended:
        said_of(unfinished)
    assert ended.value.code == 2 and "finish with `bash scripts/train_simflow.sh" in capsys.readouterr().err


def test_a_mistake_behind_the_dashes_is_said_before_anything_is_trained(scripts, tmp_path):
    run = tmp_path / "run"
    result = scripts.run("train_simflow", *JOINT, "--", "sample.cgf=[1]", run_dir=run, tiny=False)
    assert result.returncode == 2 and "config has no option 'sample.cgf'" in result.stderr
    assert not run.exists()
