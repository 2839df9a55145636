"""The study of the two objectives, at toy size."""

import json
import subprocess


def dotted(words):
    """As one string for a shell to split: sections, whose braces hold spaces, key by key."""
    made = []
    for word in words:
        name, _, value = word.partition("=")
        section = value.startswith("{")
        made += (
            [f"{name}.{part.replace(': ', '=')}" for part in value[1:-1].split(", ")]
            if section
            else [word.replace(", ", ",")]
        )
    return " ".join(made)


def test_every_objective_is_run_at_its_best_weight_beside_no_alignment(scripts, tmp_path):
    words = {name: dotted(options) for name, options in scripts.tiny_options.items()}
    variables = {
        "TARGETS": "semantic",
        "WEIGHTS": "0.1 0.3",
        "SEEDS": "1",
        "SELECT": "0",
        "BESIDE": "none",
        "JOBS": "1",
        "RUNS": str(tmp_path),
        "SCHEDULE": "regulariser.flow.start_step=3",
        "PRIOR_WORDS": words["train_flowhead"],
        "AE_WORDS": words["train_ae"],
        "MAR_WORDS": words["train_mar"],
        "GRID_MAR_WORDS": words["train_mar"] + " train.steps=6",
    }
    command = scripts.command("compare_objectives", tiny=False, **variables)
    done = subprocess.run(**command, capture_output=True, timeout=900)  # 16 stages
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = []
    for objective in ("likelihood", "distribution"):
        grid = json.loads((tmp_path / "semantic" / f"{objective}.json").read_text())
        assert list(grid) == [f"{objective}_0.1", f"{objective}_0.3"]
        chosen.append(min(grid, key=lambda entry: grid[entry]["fid"]["mean"]))
    table = json.loads((tmp_path / "semantic" / "digits.json").read_text())
    assert list(table) == ["none", *chosen]
    for entry in chosen:
        assert len(table[entry]["fid"]["seeds"]) == 1
        config = (tmp_path / "semantic" / f"{entry}_seed1" / "ae" / "config.yaml").read_text()
        assert f"objective: {entry.split('_')[0]}" in config and "start_step: 3" in config
        assert "steps: 6" in (tmp_path / "semantic" / "grid" / f"{entry}_seed0" / "mar" / "config.yaml").read_text()
