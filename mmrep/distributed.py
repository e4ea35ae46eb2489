"""The only collectives: everything that passes between processes goes through this file."""

import os

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as all_gather_with_grad
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Number of processes; 1 where torch.distributed is not running."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if world_size() > 1 else 0


def launched() -> int:
    """Number of processes that `accelerate launch` or torchrun started; 1 where neither did."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(cpu: bool = False) -> torch.device:
    """Joins the processes that a launcher started; gives the device of this one.

    Args:
        cpu: even where there are GPUs.
    """
    from accelerate import PartialState

    return PartialState(cpu=cpu).device


def stop() -> None:
    """Leaves the other processes in order."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gather(local: Float[Tensor, "local width"]) -> Float[Tensor, "global width"]:
    """The rows of all processes in rank order; gradients flow back to each process's own rows."""
    if world_size() == 1:
        return local
    return torch.cat(all_gather_with_grad(local.contiguous()), dim=0)


def gather_ids(local: Int64[Tensor, " local"]) -> Int64[Tensor, " global"]:
    """The integers of all processes in rank order."""
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def gather_rows(local: Float[Tensor, "local width"]) -> list[Float[Tensor, "_ width"]]:
    """The rows of every process, by rank, on the CPU; their numbers may differ. No gradients.

    Args:
        local: on the CPU; goes through the device that the processes talk over.
    """
    if world_size() == 1:
        return [local]
    device = _device()
    counts = gather_ids(torch.tensor([len(local)], device=device)).tolist()
    padded = torch.zeros((max(counts), local.shape[1]), dtype=local.dtype, device=device)
    padded[: len(local)] = local.to(device)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count].cpu() for part, count in zip(parts, counts, strict=True)]


def from_first(rows: Float[Tensor, "rows width"] | None) -> Float[Tensor, "rows width"] | None:
    """The first process's matrix (or None) on every process, on the CPU. What the others pass is not looked at."""
    if world_size() == 1:
        return rows
    device = _device()
    shape = (-1, -1) if rows is None else tuple(rows.shape)
    sizes = torch.tensor(shape, dtype=torch.int64, device=device)
    dist.broadcast(sizes, 0)
    count, width = sizes.tolist()
    if count < 0:
        return None
    own = rows is not None and rank() == 0
    values = rows.to(device) if own and rows is not None else torch.empty((count, width), device=device)
    dist.broadcast(values, 0)
    return values.cpu()


@torch.no_grad()
def copy_from_first(module: nn.Module) -> None:
    """Gives a module the first process's parameters and buffers, in place; none may be sharded."""
    if world_size() == 1:
        return
    for value in (*module.parameters(), *module.buffers()):
        received = value.detach().to(_device()).contiguous()
        dist.broadcast(received, 0)
        value.copy_(received)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 may have spread over the processes, gathered; each of them has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_text(text: str) -> str:
    """The text of the first process that has one; empty where none has."""
    if world_size() == 1:
        return text
    device = _device()
    data = torch.tensor(list(text.encode()), dtype=torch.int64, device=device)
    lengths = gather_ids(torch.tensor([len(data)], device=device)).tolist()
    owner = next((rank for rank, length in enumerate(lengths) if length), None)
    if owner is None:
        return ""
    data = data if rank() == owner else torch.empty(lengths[owner], dtype=torch.int64, device=device)
    dist.broadcast(data, owner)
    return bytes(data.tolist()).decode()


def _device() -> torch.device:
    """Where tensors have to lie to pass between processes."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def sum_over_processes(value: int, device: torch.device) -> int:
    """The sum of an integer over the processes, modulo 2^64 (as a signed number)."""
    if world_size() == 1:
        return value
    total = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return int(total.item())


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process."""
    return sum_over_processes(int(flag), device) > 0


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()
