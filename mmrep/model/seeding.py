"""Initial values that depend only on the seed and the parameter's name.

Models of one study therefore start equal wherever they share a parameter.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def derive_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed that differs for every (seed, name)."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed torch's CPU generator by (seed, name) within the context, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, name))
        yield


def seed_vit(trunk: nn.Module, seed: int, name: str) -> None:
    """Initialise a ViT as timm does, with a generator for each module, seeded by its name.

    timm's constructor draws all parameters from one stream, so that one more class token would change all others.
    """
    from timm.layers import trunc_normal_
    from timm.models.vision_transformer import init_weights_vit_timm

    for child_name, child in trunk.named_modules():
        if child is not trunk and next(child.parameters(recurse=False), None) is not None:
            with seeded(seed, f"{name}.{child_name}"):
                init_weights_vit_timm(child, child_name)
    for token in ("pos_embed", "cls_token", "reg_token"):
        parameter = getattr(trunk, token, None)
        if parameter is not None:
            with seeded(seed, f"{name}.{token}"):
                if token == "pos_embed":  # noqa: S105  # a parameter's name, no password
                    trunc_normal_(parameter, std=0.02)
                else:
                    nn.init.normal_(parameter, std=1e-6)
