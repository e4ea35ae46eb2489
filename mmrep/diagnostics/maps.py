"""The weight of every patch in an image's embedding."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.image_encoder import ImageEncoder, Images


def patch_weights(
    model: DualEncoder,
    images: Images,
    toward: Float[Tensor, "batch embed"] | Float[Tensor, " embed"] | None = None,
) -> Float[Tensor, "batch grid_rows grid_columns"]:
    """Return what each patch token adds to the embedding e.

    The weights are w_n = ⟨∂⟨e, d⟩/∂x_n, x_n⟩ / ‖e‖, with the direction d = e/‖e‖ or `toward`.

    This is gradient × input (Shrikumar et al., arXiv 1605.01713) at the tokens that the head reads.

    - The trunk has mixed the patches before, so these are weights of tokens, not of pixels.
    - Where the embedding is linear in the tokens (avg; cls, with zeros), a weight is the patch's exact share, and the
      weights sum to 1, or to the cosine with `toward`, minus what the class token and biases add. This holds also for
      power means of positive tokens, which are homogeneous of degree 1 (Euler).
    - Heads with softmax or MLP are approximated to first order. The distance of the sum from 1 tells how well.
    - A LayerNorm in the head or after it ignores the size of its input, so its gradient × input would be 0. It is
      treated as linear, with the standard deviation of this input as a constant (Ali et al., arXiv 2202.07304).
    - For a head that reads earlier stages the weights are summed over the stages.

    Args:
        model: in evaluation mode.
        images: images as `encode_image` takes them.
        toward: a direction, such as a text's embedding. The weights then say which patches support it.

    Returns:
        Signed weights on the patch grid, on the CPU.

    Raises:
        ConfigError: a norm after pooling that is not a LayerNorm.
    """
    encoder = model.image
    # Tensors made in inference mode take no part in a backward pass.
    with torch.inference_mode(False):
        with torch.no_grad():
            tokens = encoder.tokens(images.to(model.device))
        inputs = [x.detach().clone().requires_grad_() for x in (tokens.prefix, tokens.patches, *tokens.stages)]
        with torch.enable_grad(), _linear_norms(encoder):
            tokens = tokens._replace(prefix=inputs[0], patches=inputs[1], stages=tuple(inputs[2:]))
            embedding = encoder.project(encoder.pool(tokens).embedding)
            length = embedding.detach().norm(dim=-1).clamp(min=torch.finfo(embedding.dtype).tiny)
            along = embedding.detach() if toward is None else toward.to(embedding)
            score = (embedding * F.normalize(along, dim=-1)).sum()
            gradients = torch.autograd.grad(score, inputs, allow_unused=True)
    # A head that does not read the patches has no gradient for them.
    shares = [(g * x.detach()).sum(-1) for g, x in zip(gradients[1:], inputs[1:], strict=True) if g is not None]
    weights = sum(shares, torch.zeros(inputs[1].shape[:2], device=model.device)) / length[:, None]
    return weights.unflatten(1, tokens.grid).float().cpu()


@contextmanager
def _linear_norms(encoder: ImageEncoder) -> Iterator[None]:
    """Treat the standard deviations of the head's LayerNorms, and of the final one, as constants."""
    if encoder.norm_after and not isinstance(encoder.norm, nn.LayerNorm):
        raise ConfigError(
            "patch weights: model.image.norm 'after' is understood for LayerNorm only, not "
            f"{type(encoder.norm).__name__}"
        )
    norms = [module for module in (*encoder.pool.modules(), encoder.norm) if isinstance(module, nn.LayerNorm)]
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_hook(_linear_norm).remove)
        yield


def _linear_norm(norm: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """Return the output of a LayerNorm, with the gradient of a linear map."""
    assert isinstance(norm, nn.LayerNorm), f"expected a LayerNorm, got {type(norm).__name__}"
    (x,), last = inputs, tuple(range(-len(norm.normalized_shape), 0))
    centred = x - x.mean(last, keepdim=True)
    scaled = centred / (centred.detach().square().mean(last, keepdim=True) + norm.eps).sqrt()
    scaled = scaled if norm.weight is None else scaled * norm.weight
    return (scaled if norm.bias is None else scaled + norm.bias).to(out.dtype)
