"""Collectives: everything that training and evaluation exchange between processes goes through this file."""

import gc
import json
import logging
import os
import platform
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as all_gather_with_grad
from torch.distributed.tensor import DTensor

from mmrep import agreement
from mmrep.config.checks import require

LOG = logging.getLogger("mmrep")
T = TypeVar("T")

_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables in which torchrun and accelerate, several MPIs, and SLURM's srun give the number of processes."""
_TIMEOUT = timedelta(hours=2)  # a rank may index shards or decode a set into the cache while the others wait
_MEETING = timedelta(minutes=5)
_PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def world_size() -> int:
    """Return the number of processes, or 1 where torch.distributed is not running."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def launched() -> int:
    """Return the number of processes that `accelerate launch` or torchrun started, or 1 where neither did.

    Raises:
        ConfigError: the launcher's variable is not a number.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    require(text.isdecimal() and int(text) > 0, f"WORLD_SIZE: expected the number of processes, got {text!r}")
    return int(text)


def start(cpu: bool = False) -> torch.device:
    """Join the processes that a launcher started, and return the device of this one.

    The number of processes according to the launcher, Accelerate and torch.distributed is compared here, once. Later
    code relies on each of the three; where they differ, a loss would be silently wrong.

    Args:
        cpu: use CPUs even where there are GPUs.

    Raises:
        ConfigError: the numbers differ, or the launcher asks for something that mmrep does not support.
    """
    from accelerate import PartialState

    check_launcher()
    several = launched() > 1
    if not world_size() > 1:
        agreement.end_with_launcher(several)
    met = dist.is_available() and dist.is_initialized()
    # Without a GPU, Accelerate starts several processes only if it is told to use CPUs.
    on_cpu = cpu or (several and not torch.cuda.is_available())
    state = PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    said = {name: int(value) for name in _COUNTS if (value := os.environ.get(name, "")).isdecimal()}
    name, started = next(iter(said.items()), ("WORLD_SIZE", 1))
    require(
        started == state.num_processes == world_size() and state.process_index == rank(),
        f"the launcher says {started} processes ({name}), Accelerate {state.num_processes}, torch.distributed "
        f"{world_size()}: start them with `accelerate launch` or torchrun, or unset {name} for a single process",
    )
    if world_size() > 1 and not met:
        _meet(state.device)
    return state.device


def check_launcher() -> None:
    """Check that the launcher asks for nothing that would change the training and that mmrep does not support.

    Raises:
        ConfigError: it does.
    """
    asked = next((kind for name, kind in _PLUGINS.items() if os.environ.get(name, "").lower() == "true"), None)
    require(
        asked is None,
        f"the launcher asks for {asked}, which mmrep does not use: take a config of launch/ (a process a GPU, DDP)",
    )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    require(
        steps in ("", "1"),
        f"the launcher asks for gradient accumulation over {steps} steps, which mmrep does not do: leave it out; "
        "training.global_batch is what one step sees",
    )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("", "no"):
        LOG.warning("the launcher's dynamo backend %s is not used: --training.compile true compiles the model", backend)


def check_precision(precision: str, option: str = "--training.precision") -> None:
    """Warn where the launcher's mixed precision differs from the model's, since it is not used.

    Args:
        precision: `fp32` or `bf16`.
        option: the option that decides.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("", "no", precision):
        LOG.warning(
            "the launcher's mixed_precision %s is not used: %s decides, and is %s (bf16 for autocast)",
            asked, option, precision,
        )  # fmt: skip


def _meet(device: torch.device) -> None:
    """Compare the devices of the processes, and start to watch the other processes.

    Raises:
        ConfigError: two processes share a GPU, or only some have one.
    """
    # There is no public way to the store of the default group.
    default = dist.distributed_c10d._get_default_store()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"mmrep/{attempt}", default.clone())
    store.set_timeout(_MEETING)
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    own = {"type": device.type, "gpu": gpu, "place": _machine(), "pid": os.getpid(), "host": platform.node()}
    store.set(f"here/{rank()}", json.dumps(own))
    found: list[dict[str, Any]] = [json.loads(store.get(f"here/{other}")) for other in range(world_size())]
    local = {i: each["pid"] for i, each in enumerate(found) if i != rank() and each["place"] == own["place"]}
    agreement.join(store, rank(), world_size(), local)
    kinds = {each["type"]: f"rank {i} on {each['host']}" for i, each in enumerate(found)}
    require(len(kinds) == 1, f"some processes have a GPU and some none: {kinds}; give each of them one")
    owners: dict[str, int] = {}
    for i, each in enumerate(found):
        other = owners.setdefault(each["gpu"] or str(i), i)
        require(
            other == i,
            f"ranks {other} and {i} share a GPU of {each['host']}: start as many processes as there are GPUs "
            "(--num_processes)",
        )
    if device.type == "cpu" and rank() == 0:
        LOG.info("%d processes on CPUs: no GPU is visible", world_size())


def _machine() -> str:
    """Return an identifier of this machine and of the container whose process ids it uses."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{platform.node()} {os.getpid()}"


def begin(step: int) -> None:
    """Record the step that training starts from. Every process calls this before any of them trains."""
    if others := agreement.peers():
        others.begin(step)


def stops(done: int, signalled: str) -> str:
    """Return the signal that ends all processes after this step, or an empty text; see `Peers.stops`."""
    others = agreement.peers()
    return others.stops(done, signalled) if others else signalled


def advise(text: str) -> None:
    """Set the advice that ends the message about a killed process."""
    if others := agreement.peers():
        others.advice = f"; {text}"


def stop() -> None:
    """Leave the process group in order."""
    agreement.leave()
    if dist.is_available() and dist.is_initialized():
        # Reference cycles of DDP hold the process group. Where it outlives the interpreter, torch sometimes aborts, and
        # the launcher takes a finished run for a failed one.
        gc.collect()
        dist.destroy_process_group()


def gather(local: Float[Tensor, "local width"]) -> Float[Tensor, "global width"]:
    """Return the rows of all processes in rank order. Gradients flow back to each process's own rows."""
    if world_size() == 1:
        return local
    return torch.cat(all_gather_with_grad(local.contiguous()), dim=0)


def gather_ids(local: Int64[Tensor, " local"]) -> Int64[Tensor, " global"]:
    """Return the integers of all processes in rank order."""
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def gather_rows(local: Float[Tensor, "local width"]) -> list[Float[Tensor, "_ width"]]:
    """Return the rows of every process by rank, on the CPU and without gradients. Their numbers may differ."""
    return _gather_objects(local.cpu()) if world_size() > 1 else [local]


def from_first(rows: Float[Tensor, "rows width"] | None) -> Float[Tensor, "rows width"] | None:
    """Return the first process's matrix, or None, on every process. What the others pass is ignored."""
    if world_size() == 1:
        return rows
    found = [rows]
    dist.broadcast_object_list(found, 0)
    return found[0]


@torch.no_grad()
def copy_from_first(module: nn.Module) -> None:
    """Overwrite a module's parameters and buffers with those of the first process. None may be sharded."""
    if world_size() == 1:
        return
    for value in (*module.parameters(), *module.buffers()):
        received = value.detach().to(exchange_device()).contiguous()
        dist.broadcast(received, 0)
        value.copy_(received)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that FSDP2 may have sharded. This is a collective: call it on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_text(text: str) -> str:
    """Return the text of the first process that has one, or an empty one where none has."""
    return next(filter(None, _gather_objects(text)), "") if world_size() > 1 else text


def of_first(value: T) -> T:
    """Return the first process's value on every process. What the others pass is ignored."""
    return _gather_objects(value)[0] if world_size() > 1 else value


def _gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes by rank.

    This is torch's, not Accelerate's `gather_object`, which returns this process's own value alone where the processes
    met without Accelerate.
    """
    found = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def exchange_device() -> torch.device:
    """Return the device that tensors must be on to pass between processes."""
    nccl = world_size() > 1 and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes."""
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def sum_over_processes(value: int, device: torch.device) -> int:
    """Return the sum of an integer over the processes, modulo 2^64 (as a signed number)."""
    if world_size() == 1:
        return value
    total = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return int(total)


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any process."""
    return sum_over_processes(int(flag), device) > 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()
