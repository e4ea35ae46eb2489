"""timm trunks: they are built, checked to return (batch, prefix + patches, width), and run block by block."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float, Int64
from timm.layers import AttentionPoolLatent
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrep.config.checks import ConfigError, hint, quoted, require
from mmrep.config.heads import MapArgs
from mmrep.config.pooling import Norm
from mmrep.model.seeding import seed_vit, seeded

WALKED = (VisionTransformer, Eva)
"""Model families that are run block by block. All others return their last tokens only."""


def build_trunk(name: str, args: dict[str, Any], pretrained: bool, seed: int) -> tuple[Any, nn.Module]:
    """Build a timm trunk without pooling and head, and return it and its final norm, which is taken out of it.

    Raises:
        ConfigError: no such model, arguments that it does not take, or tokens of an unsupported shape.
    """
    _check_name(name, "model.image.trunk")
    if not pretrained and timm.model_entrypoint(name).__module__ == VisionTransformer.__module__:
        # `seed_vit` draws the initial values; timm need not draw them first.
        args = {"weight_init": "skip", **args}
    # A checkpoint needs the pooling that it was trained with: the pooling decides whether timm calls the final norm
    # `norm` or `fc_norm`, and a norm of the other name would keep its initial values.
    pooling = {} if pretrained else {"global_pool": ""}
    try:
        with seeded(seed, "image.trunk"):
            trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, **pooling, **args)
    except Exception as error:  # timm raises many kinds here, and each means the same to the user
        reason, loading = " ".join(str(error).split())[:200], " and load its pretrained weights" if pretrained else ""
        raise ConfigError(
            f"model.image: timm can't build {name!r}{loading} with args {quoted(args)}: {reason}"
        ) from error
    if pretrained:
        trunk.attn_pool, trunk.global_pool = None, ""  # mmrep pools with a head of its own
    reason = _unfit(trunk)
    if reason:
        raise ConfigError(
            f"model.image.trunk: {name!r} ({type(trunk).__name__}) does not fit: {reason}; "
            "a trunk must return (batch, prefix + patches, width), as timm's VisionTransformer and Eva do"
        )
    if isinstance(trunk, VisionTransformer) and not pretrained:
        seed_vit(trunk, seed, "image.trunk")
    norm = trunk.norm if not isinstance(trunk.norm, nn.Identity) else trunk.fc_norm
    trunk.norm, trunk.fc_norm = nn.Identity(), nn.Identity()
    return trunk, norm


def _check_name(name: str, where: str) -> None:
    if not timm.is_model(name):
        raise ConfigError(f"{where}: timm has no model {quoted(name)}{hint(name, timm.list_models(), 3)}")


def timm_head(
    name: str, pool: str, keep_default: bool, where: str
) -> tuple[str | dict[str, Any], Norm, tuple[int, int]]:
    """Find out how a timm model pools in open_clip's TimmModel, by building it without values as open_clip does.

    Args:
        name: the timm model.
        pool: open_clip's timm_pool.
        keep_default: an empty `pool` keeps the model's own pooling, as in open_clip if a projection of its own follows.
            Otherwise an empty `pool` means no pooling.
        where: start of the messages.

    Returns:
        `model.pool` and `model.image.norm` of our config, and the rows and columns of the model's images.

    Raises:
        ConfigError: no such model, or a head that none of ours equals.
    """
    _check_name(name, f"{where}: timm_model_name")
    try:
        with torch.device("meta"):
            if keep_default:
                trunk: Any = timm.create_model(name, pretrained=False)
                trunk.reset_classifier(0, **({"global_pool": pool} if pool else {}))
            else:
                trunk = timm.create_model(name, pretrained=False, num_classes=1, global_pool=pool)
    except (TypeError, AssertionError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"{where}: timm can't build {name!r} with timm_pool {quoted(pool)}: {' '.join(str(error).split())[:200]}"
        ) from error
    reason = _unfit(trunk)
    require(not reason, f"{where}: {name!r} ({type(trunk).__name__}) is not supported: {reason}")
    norms = [part for part in ("norm", "fc_norm") if not isinstance(getattr(trunk, part, nn.Identity()), nn.Identity)]
    require(len(norms) == 1, f"{where}: {name!r} has several final norms, which is not supported")
    own = {"token": "cls", "avg": "avg", "max": "max", "avgmax": "avgmax", "map": "map"}
    kind = str(getattr(trunk, "global_pool", ""))
    require(
        kind in own,
        f"{where}: timm_pool {quoted(pool)}: {name!r} then pools by {kind or 'nothing'!r}, which is not supported",
    )
    whole = bool(getattr(trunk, "pool_include_prefix", False)) or (kind == "map" and isinstance(trunk, Eva))
    require(
        kind == "token" or not whole or trunk.num_prefix_tokens == 0,
        f"{where}: timm_pool {quoted(pool)}: {name!r} pools its class or register tokens too, which is not supported",
    )
    found = _attention_pool(trunk, f"{where}: {name!r}") if kind == "map" else own[kind]
    return found, "after" if norms == ["fc_norm"] else "before", image_size(trunk)


def _attention_pool(trunk: Any, where: str) -> dict[str, Any]:
    """Return timm's attention pooling as our `map` with its arguments."""
    pool = trunk.attn_pool
    plain = (
        type(pool) is AttentionPoolLatent
        and pool.latent.shape == (1, 1, trunk.embed_dim)
        and pool.pos_embed is None
        and pool.pool == "token"
        and isinstance(pool.q, nn.Linear)
        and isinstance(pool.q_norm, nn.Identity)
        and isinstance(pool.norm, nn.LayerNorm)
        and pool.norm.eps == 1e-6
        and isinstance(pool.mlp.act, nn.GELU)
    )
    require(
        plain,
        f"{where}: its attention pooling differs from pool 'map' in queries, norms or activation; not supported",
    )
    args: dict[str, Any] = {}
    if pool.num_heads != num_heads(trunk):
        args["num_heads"] = pool.num_heads
    hidden, width = pool.mlp.fc1.out_features, trunk.embed_dim
    if hidden != int(width * MapArgs().mlp_ratio):
        # timm truncates width × ratio to a whole number, which must be `hidden` again.
        args["mlp_ratio"] = hidden / width if int(hidden / width * width) == hidden else (hidden + 0.5) / width
    return {"name": "map", "args": args}


def _unfit(trunk: Any) -> str:
    """Return why a model can't be a trunk; empty if it can."""
    for attribute in ("num_prefix_tokens", "embed_dim", "norm", "patch_embed", "blocks"):
        if not hasattr(trunk, attribute):
            return f"it has no {attribute}"
    if isinstance(trunk.norm, nn.Identity) and isinstance(getattr(trunk, "fc_norm", nn.Identity()), nn.Identity):
        return "it has no final norm"
    if not hasattr(trunk.patch_embed, "grid_size"):
        return "its patch embedding has no grid_size"
    if isinstance(trunk, VisionTransformer):
        return ""
    rows, columns = trunk.patch_embed.grid_size
    training = trunk.training
    with torch.no_grad():
        images = torch.zeros(1, 3, *image_size(trunk), device=next(trunk.parameters()).device)
        shape = tuple(trunk.eval().forward_features(images).shape)
    trunk.train(training)
    expected = (1, trunk.num_prefix_tokens + rows * columns, trunk.embed_dim)
    return "" if shape == expected else f"expected tokens of shape {expected}, got {shape}"


def image_size(trunk: Any) -> tuple[int, int]:
    """Return the rows and columns of a trunk's images."""
    height, width = trunk.patch_embed.img_size
    return int(height), int(width)


def has_class_token(trunk: Any) -> bool:
    """Return whether the first prefix token is a class token."""
    return getattr(trunk, "cls_token", None) is not None


def num_heads(trunk: Any) -> int | None:
    """Return the number of attention heads of the last block, or None if the block has none."""
    return getattr(getattr(trunk.blocks[-1], "attn", None), "num_heads", None)


def walk(
    trunk: Any,
    images: Float[Tensor, "batch 3 rows columns"],
    kept: Int64[Tensor, "batch kept"] | None = None,
    grad_checkpointing: bool = False,
    blocks: Sequence[int] = (),
) -> tuple[Float[Tensor, "batch tokens width"], tuple[Float[Tensor, "batch tokens width"], ...]]:
    """Return the output tokens of a trunk before the final norm, prefix first, and those after some earlier blocks.

    Args:
        trunk: the trunk from `build_trunk`.
        images: normalised images.
        kept: positions of the patches to keep. The others are left out after the position embedding.
        grad_checkpointing: recompute each block in the backward pass.
        blocks: numbers of the earlier blocks, from 0.

    Raises:
        ConfigError: patch dropout on a trunk with rotary embeddings, or patch dropout or earlier blocks on a family
            that is not run block by block.
    """
    if not isinstance(trunk, WALKED):
        if kept is not None:
            raise ConfigError(f"model.image.patch_dropout: not supported for {type(trunk).__name__}")
        if blocks:
            check_stages(trunk)
        return trunk.forward_features(images), ()
    x, rope = trunk._pos_embed(trunk.patch_embed(images)), None
    if isinstance(trunk, Eva):
        x, rope = x
    if kept is not None:
        if rope is not None:
            raise ConfigError("model.image.patch_dropout: not supported for trunks with rotary embeddings")
        prefix, patches = x[:, : trunk.num_prefix_tokens], x[:, trunk.num_prefix_tokens :]
        x = torch.cat([prefix, patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))], dim=1)
    x, after = trunk.norm_pre(x), []
    for i, block in enumerate(trunk.blocks):
        args = {}
        if rope is not None:
            args["rope"] = rope[i] if getattr(trunk, "rope_mixed", False) else rope
        x = checkpoint(block, x, use_reentrant=False, **args) if grad_checkpointing else block(x, **args)
        if i in blocks:
            after.append(x)
    return x, tuple(after)


def check_stages(trunk: Any) -> None:
    """Raise ConfigError if the tokens of a trunk's earlier blocks can't be read."""
    if not isinstance(trunk, WALKED):
        raise ConfigError(
            f"model.pool: heads that read several stages are not supported on {type(trunk).__name__}; set the head's "
            "stages to 0, or choose a VisionTransformer or Eva as model.image.trunk"
        )


def stage_blocks(depth: int, stages: int) -> tuple[int, ...]:
    """Return the blocks, from 0, at whose ends a trunk is split into `stages` + 1 parts of about equal length.

    Raises:
        ConfigError: more stages than blocks before the last one.
    """
    if stages >= depth:
        raise ConfigError(
            f"model.pool args.stages: expected at most {depth - 1} on a trunk of {depth} blocks, got {stages}"
        )
    return tuple(round(depth * part / (stages + 1)) - 1 for part in range(1, stages + 1))
