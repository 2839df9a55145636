"""The paper's full recipe at a size for tests; ``python tests/helpers/full_recipe.py`` takes the same steps at the paper's."""

import math

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
