"""The light model of a trained `mcap` or `mmcap`: its mean token alone."""

import dataclasses

from mmrep.config.checks import ConfigError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling.cap import LightCap, MultiCap

_STUDENT, _TEACHER = "image.auxiliary_projections.0.", "image.projection."


def light_from(model: DualEncoder) -> DualEncoder:
    """A model with the head `mmcap_light`, whose image embedding is what the distillation taught the mean token.

    Args:
        model: with the head `mcap` or `mmcap`, its `distill` on.

    Returns:
        A model on the device of `model`, in its mode and precision, with copies of the weights.

    Raises:
        ConfigError: the model has no mean token.
    """
    config, head = model.config, model.image.pool
    pool = config.pooling
    if not isinstance(head, MultiCap) or isinstance(head, LightCap) or not head.auxiliary_dims:
        grafted = f", grafted onto {config.base.name!r}" if config.base else ""
        raise ConfigError(
            f"mmcap_light: expected a model with pool 'mcap' or 'mmcap' and its distill: true, which trains the mean "
            f"token, got {pool.name!r} with {pool.args or 'no args'}{grafted}"
        )
    given = pool.checked_args()
    args = {"ffn_ratio": given.ffn_ratio, "tokens": given.tokens, "stages": head.num_stages}
    if given.num_heads is not None:
        args["num_heads"] = given.num_heads
    light_config = dataclasses.replace(
        config,
        pool={"name": "mmcap_light", "args": args},
        pool_init="fresh",
        pool_base=None,
        weights=None,
        image=dataclasses.replace(config.image, pretrained=False),
    )
    light = DualEncoder(light_config, sigmoid=model.logit_bias is not None)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(_TEACHER)}
    light.load_state_dict({name.replace(_STUDENT, _TEACHER): value for name, value in state.items()})
    light.precision = model.precision
    return light.to(model.device).train(model.training)
