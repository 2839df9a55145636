import torch
from torch import nn

from tokenizer.losses.discriminators.dino import FORMER_NAMES, Head


def test_a_checkpoint_under_the_heads_former_names_gives_the_same_logits():
    heads, other = (nn.ModuleList(Head(8) for _ in range(2)).eval() for _ in range(2))
    state = heads.state_dict()
    for former, present in FORMER_NAMES.items():
        state = {name.replace(f".{present}.", f".{former}."): value for name, value in state.items()}
    assert not state.keys() & heads.state_dict().keys()
    other.load_state_dict(state)
    tokens = torch.randn(3, 16, 8)
    assert all(torch.equal(a(tokens, 4), b(tokens, 4)) for a, b in zip(heads, other))
