import math
from collections import Counter

import numpy as np
import pytest
import torch

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from tokenizer.prior.targets import TargetConfig, load_target
from tokenizer.prior.targets.base import TargetContext
from tokenizer.prior.targets.word_vectors import CONTEXT_SMOOTHING, help_texts, word_vectors

DOCUMENTS = [
    "the cat sat on the mat the dog sat on the rug".split(),
    "a cat and a dog ran over the mat and a rug once".split(),
    ["the"],
]


def slow_ppmi(documents, window, min_count):
    """Word by word, from the definition."""
    counts = Counter(word for document in documents for word in document)
    words = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
    pairs = np.zeros((len(words), len(words)))
    for document in documents:
        known = [words.index(word) for word in document if word in words]
        for i, word in enumerate(known):
            for j in range(max(0, i - window), min(len(known), i + window + 1)):
                if i != j:
                    pairs[word, known[j]] += 1 / abs(i - j)
    share = pairs.sum(1) / pairs.sum()
    context = share**CONTEXT_SMOOTHING / (share**CONTEXT_SMOOTHING).sum()
    ppmi = np.zeros_like(pairs)
    for i, j in zip(*np.nonzero(pairs)):
        ppmi[i, j] = max(0.0, math.log(pairs[i, j] / pairs.sum() / (share[i] * context[j])))
    return words, ppmi


@pytest.mark.parametrize("window, min_count", [(1, 1), (3, 1), (2, 2)])
def test_vectors_are_the_truncated_svd_of_the_positive_mutual_information(window, min_count):
    words, ppmi = slow_ppmi(DOCUMENTS, window, min_count)
    found, vectors = word_vectors(DOCUMENTS, 4, window, min_count, seed=0)
    u, s, _ = np.linalg.svd(ppmi)
    assert found == words and vectors.dtype == np.float32
    expected = (u[:, :4] * s[:4]) @ u[:, :4].T  # U S^(1/2) has signs of its own, its products have none
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-4)


def load(folder, seed=0, **options):
    config = build_config(TargetConfig, {"source": "word_vectors", "word_vectors": options})
    return load_target(config, TargetContext(seed, folder, World()))


def test_the_embedded_text_gives_a_table_that_is_a_function_of_the_seed(tmp_path):
    first, again, other = (load(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert len(first.features) > 2000 and first.features.shape[1] == 64 and torch.isfinite(first.features).all()
    assert torch.equal(first.features, again.features) and not torch.equal(first.features, other.features)


def test_words_of_like_use_are_near_each_other():
    words, vectors = word_vectors(help_texts(), 64, 5, 2, seed=0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = {word: unit[i] for i, word in enumerate(words)}
    typical = np.abs(unit @ rows["float"]).mean()
    for one, other in (("list", "tuple"), ("float", "complex"), ("raise", "exception")):
        assert rows[one] @ rows[other] > 4 * typical


def test_too_few_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="not enough for 64 channels"):
        load(tmp_path, min_count=100_000)
