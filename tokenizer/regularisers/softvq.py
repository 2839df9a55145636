"""SoftVQ-VAE: tokens that are softly assigned to codebooks (Chen et al. 2024, arXiv 2412.10958)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowprior.distributed import World
from flowprior.run.config import option
from tokenizer.autoencoder import Encoded
from tokenizer.latent_maps.segment_codebooks import SegmentCodebooksConfig
from tokenizer.regularisers.assignment_entropy import entropy_loss, over_processes
from tokenizer.regularisers.base import RegulariserContext
from tokenizer.regularisers.feature_head import TokenHead
from tokenizer.regularisers.soft_quantiser import SoftQuantiser, SoftQuantiserConfig


def pooled_entropy_loss(similarity: Tensor, temperature: float, world: World) -> Tensor:
    """``E H(p) - H(E p)`` over the tokens of all segments together, with ``p = softmax(similarity / temperature)``.

    Codeword s of one codebook counts as the same as codeword s of another: the mean assignment has ``size`` entries, not codebooks x size.

    Args:
        similarity: ``(B, T, size)``, cosines.
        temperature: of the softmax.
        world: the mean assignment is over the batch of all of them.
    """
    log_share = (similarity.float() / temperature).log_softmax(-1)  # (B, T, S)
    share = log_share.exp()
    mean = over_processes(share.mean((0, 1)), world)  # (S,)
    return entropy_loss(-(share * log_share).sum(-1).mean(), mean)


class SoftVQRegulariser(SoftQuantiser):
    name = "softvq"
    head_type = TokenHead

    def __init__(self, config: SoftVQConfig, context: RegulariserContext) -> None:
        super().__init__(config, context)
        model = context.model
        self.note = (
            f"softvq: {config.codebooks} codebooks of {config.size} x {model.channels}, each for {model.tokens // config.codebooks} of the "
            f"{model.tokens} tokens, as in SoftVQ-VAE; codebooks of shares of the channels are regulariser.name=soft_pq"
        )

    def entropy(self, encoded: Encoded) -> Tensor:
        return pooled_entropy_loss(encoded.metrics["codeword_similarity"], self.config.entropy_temperature, self.world)


@dataclass
class SoftVQConfig(SoftQuantiserConfig):
    """The softvq regulariser: it gives the autoencoder the codebooks, and keeps them in use."""

    regulariser = SoftVQRegulariser
    latent_map = "segment_codebooks", SegmentCodebooksConfig
    codebooks: int = option(
        4, "number of codebooks, each over an equal segment of the tokens, at the latents' full width", least=1
    )
    entropy_weight: float = option(0.01, "weight of the entropy part, which pools all codebooks", least=0)
    alignment_weight: float = option(
        0.0,
        "weight of the cosine distance between an MLP of the latents, each token standing for as many neighbouring patches, and frozen patch "
        "features; 0: no such part",
        least=0,
    )
    entropy_temperature: float = option(
        0.01,
        "temperature of the softmax in the entropy part",
        above=0,
        before="that of shares of the channels, which is regulariser.name=soft_pq",
    )
