"""The paper's full recipe at a size for tests; ``python tests/helpers/full_recipe.py`` takes the same steps at the paper's."""

import math
from functools import partial

import torch

from flowprior.training import loop as training_loop
from flowprior.training.compilation import compile_parts
from full_recipe import full_recipe, train_steps

SMALL = [
    "data.size=32",
    "model.image_size=32",
    "model.tokens=4",
    "model.channels=8",
    "model.encoder.name=vit_tiny_patch16_224",
    "model.decoder={name: '', width: 24, depth: 1, heads: 3}",
    "loss.adversarial.discriminator.dino={name: vit_tiny_patch16_224, size: 32, blocks: [2, 4]}",
    "loss.adversarial.discriminator.dino.pretrained=false",
    "train.steps=3",
    "train.global_batch=2",
    "model.checkpoint_blocks=true",
]


def test_every_term_of_the_full_recipe_is_there_and_finite_and_sends_a_gradient_to_the_latents(tmp_path):
    rows = train_steps(full_recipe(tmp_path, *SMALL), tmp_path, prior_width=16, prior_depth=1)
    terms = ("l2", "lpips", "adversarial", "flow")
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        weighted = {"l2": 1.0, "lpips": 1.0, "adversarial": 0.2, "flow": 0.01}
        for name, weight in weighted.items():
            assert math.isclose(row[f"weighted/{name}"], weight * row[name], rel_tol=1e-5)
        assert math.isclose(row["loss"], sum(row[f"weighted/{name}"] for name in terms), rel_tol=1e-5)
        assert {"game", "lecam", "consistency"} <= row.keys()
    assert ["latent_gradient/l2" in row for row in rows] == [False, True, False]
    assert all(rows[1][f"latent_gradient/{name}"] > 0 for name in terms)


def test_compiled_with_blocks_computed_again_it_takes_the_same_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "compile_parts", partial(compile_parts, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rows = {}
    with torch._functorch.config.patch(donated_buffer=True):  # puts back what the loop sets
        for compiled in ("false", "true"):
            torch.manual_seed(0)
            config = full_recipe(tmp_path, *SMALL, f"train.compile={compiled}")
            rows[compiled] = train_steps(config, tmp_path, prior_width=16, prior_depth=1)
    # The encoder's and the decoder's, and nothing that the compiler gave up on.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    for row, plain in zip(rows["true"], rows["false"], strict=True):
        assert row.keys() == plain.keys()
        assert all(math.isclose(row[name], plain[name], rel_tol=1e-5) for name in row if name != "seconds")
