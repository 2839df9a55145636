"""The embedded textual target: word vectors of the text that ships with Python, in a language model's embedding table's place."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.training.randomness import stream_seed
from tokenizer.prior.targets.base import TargetContext, TargetFeatures, computed_once

CONTEXT_SMOOTHING = 0.75


@dataclass
class WordVectorsTarget:
    """source=word_vectors: PPMI and truncated SVD over the help texts in ``pydoc_data.topics``."""

    channels: int = option(64, "channels of a word vector")
    window: int = option(5, "words on either side that count as context")
    min_count: int = option(2, "a word occurs at least so often")

    def __post_init__(self) -> None:
        if min(self.channels, self.window, self.min_count) < 1:
            raise ValueError("channels, window and min_count are at least 1")

    def load(self, context: TargetContext) -> TargetFeatures:
        return computed_once(context, self, lambda: self.make(context.seed))

    def make(self, seed: int) -> TargetFeatures:
        """``(words, channels)``, the most frequent word first."""
        documents = help_texts()
        words, vectors = word_vectors(documents, self.channels, self.window, self.min_count, seed)
        name = f"word_vectors: {len(words)} words of Python's help texts"
        return TargetFeatures(torch.from_numpy(vectors), name)


def help_texts() -> list[list[str]]:
    """The words of each topic of Python's own help, in lower case; a UserError where an interpreter comes without them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "this Python has no pydoc_data.topics, the text of the embedded word vectors: use another Python"
        ) from None
    return [re.findall(r"[a-z][a-z_]*", topics[name].lower()) for name in sorted(topics)]


def word_vectors(
    documents: list[list[str]], channels: int, window: int, min_count: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """Words and their vectors ``U S^(1/2)`` of the truncated SVD of the positive pointwise mutual information (Levy et al. 2015).

    Args:
        documents: words in order; contexts do not reach over the end of a document.
        channels: of a vector.
        window: words on either side; one at distance k counts 1/k.
        min_count: rarer words are left out, before contexts are formed.
        seed: of the randomised SVD.

    Returns:
        The vocabulary, most frequent first, and float32 ``(words, channels)``.
    """
    from scipy.sparse import coo_matrix
    from sklearn.decomposition import TruncatedSVD

    counts = Counter(word for document in documents for word in document)
    vocabulary = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
    if len(vocabulary) <= channels:
        raise UserError(f"{len(vocabulary)} words occur {min_count} times or more: not enough for {channels} channels")
    number = {word: i for i, word in enumerate(vocabulary)}
    rows, columns, weights = [], [], []
    for document in documents:
        known = np.array([number[word] for word in document if word in number], dtype=np.int64)
        for distance in range(1, min(window, len(known) - 1) + 1):
            left, right = known[:-distance], known[distance:]
            rows += [left, right]
            columns += [right, left]
            weights.append(np.full(2 * len(left), 1 / distance))
    size = len(vocabulary)
    pairs = coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (size, size))
    ppmi = _positive_mutual_information(pairs.tocsr())
    svd = TruncatedSVD(channels, n_iter=7, random_state=stream_seed(seed, "word vectors") % 2**32)
    projected = svd.fit_transform(ppmi)  # U S
    return vocabulary, (projected / np.sqrt(svd.singular_values_)).astype(np.float32)


def _positive_mutual_information(pairs):
    """``max(0, log p(w, c) / (p(w) p(c)))`` of a symmetric sparse table of counts, with smoothed context frequencies."""
    pairs = pairs.tocoo()
    total = pairs.sum()
    word = np.asarray(pairs.sum(1)).ravel() / total
    context = word**CONTEXT_SMOOTHING / (word**CONTEXT_SMOOTHING).sum()
    information = np.log(pairs.data / total / (word[pairs.row] * context[pairs.col]))
    pairs.data = np.maximum(information, 0)
    ppmi = pairs.tocsr()
    ppmi.eliminate_zeros()
    return ppmi
