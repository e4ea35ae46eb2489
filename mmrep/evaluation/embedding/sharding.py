"""Models too large for one device, spread over the processes for evaluation."""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from mmrep import distributed
from mmrep.model.dual_encoder import DualEncoder


def shard_for_evaluation(model: DualEncoder) -> DualEncoder:
    """The same model, its weights spread over all processes by FSDP2: each block of both towers, and the rest.

    All processes have to call `encode_image` and `encode_text` equally often, as `embed_images` and `embed_texts` do.

    Args:
        model: whole, with the same weights on every process, on its own device.
    """
    mesh = init_device_mesh(model.device.type, (distributed.world_size(),))
    for block in [*model.image.trunk.blocks, *model.text.tower.transformer.resblocks]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("encode_image", "encode_text"):
        register_fsdp_forward_method(model, method)
    return model
