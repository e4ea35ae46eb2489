"""A cache of embeddings on disk, under digests of everything that their bits depend on."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import mmrep
from mmrep import distributed
from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError, MmrepError, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.evaluation.embedding.embed import centre_of, embed_set, embed_texts
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder

LOG = logging.getLogger("mmrep")

LIMIT, LIMIT_GB = "MMREP_EMBEDDINGS_GB", 20.0
_SUFFIX, _UNFINISHED = ".safetensors", ".part"
_ABANDONED_S = 24 * 3600
_PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "pillow", "simplejpeg")
_CODE = (
    "model/*.py",
    "pooling/**/*.py",
    "data/decode.py",
    "data/jpeg.py",
    "data/transforms.py",
    "pixels.py",
    "evaluation/embedding/*.py",
)

Key = Mapping[str, object]
"""Everything that the bits of a matrix depend on, as values that JSON can hold."""


class EmbeddingCache:
    """Matrices in `$MMREP_CACHE/embeddings`, and digests of models, which are computed once.

    The least recently used matrices are removed first. Several processes and hosts can share the folder, since files
    get their names when they are complete. Only the first process of a run reads and writes, so that all agree on what
    is cached.

    Args:
        folder: another folder.
        limit: most bytes; None: `$MMREP_EMBEDDINGS_GB` (default 20).

    Raises:
        ConfigError: `$MMREP_EMBEDDINGS_GB` is not a number of GB.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or cache_root() / "embeddings"
        self.limit = _limit() if limit is None else limit
        self._digests: dict[nn.Module, tuple[object, str]] = {}

    def digest(self, tower: nn.Module) -> str:
        """Return `tower_digest`, computed once for each state of a module. Changes through `.data` go unnoticed."""
        tensors = [*tower.parameters(), *tower.buffers()]
        state = _attributes(tower), [(id(each), 0 if each.is_inference() else each._version) for each in tensors]
        if tower not in self._digests or self._digests[tower][0] != state:
            self._digests[tower] = (state, tower_digest(tower))
        return self._digests[tower][1]

    def path(self, key: Key) -> Path:
        """Return the file of a matrix."""
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=20).hexdigest()}{_SUFFIX}"

    def get(self, key: Key) -> Float[Tensor, "rows embed"] | None:
        """Return the matrix on every process, or None. A damaged file counts as missing, with a warning."""
        return distributed.from_first(self._read(self.path(key)) if distributed.rank() == 0 else None)

    def put(self, key: Key, rows: Float[Tensor, "rows embed"]) -> None:
        """Store a matrix. A failure is only a warning, since it costs time later but changes no figure."""
        if distributed.rank() != 0:
            return
        if rows.nbytes > self.limit:
            LOG.warning("embedding cache: %.1f GB are more than its limit; raise %s", rows.nbytes / 1e9, LIMIT)
            return
        path = self.path(key)
        part = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(rows.nbytes)
            save_file({"rows": rows.contiguous(), "check": _check(rows)}, part, {"key": json.dumps(key)})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            LOG.warning(
                "embedding cache: %s: %s; the embeddings are not cached (MMREP_CACHE moves the cache)", path, error
            )
        finally:
            with suppress(OSError):
                part.unlink()

    def _read(self, path: Path) -> Tensor | None:
        try:
            with safe_open(path, framework="pt") as file:
                rows, check = file.get_tensor("rows"), file.get_tensor("check")
            if not torch.equal(check, _check(rows)):
                raise ValueError("its checksum differs")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            LOG.warning("embedding cache: %s can't be used: %s; computed again", path, error)
            return None
        return rows

    def _make_room(self, size: int) -> None:
        found = []
        for path in self.folder.iterdir():
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed by another process
                continue
            if path.suffix == _SUFFIX:
                found.append((stat.st_mtime, stat.st_size, path))
            elif path.suffix == _UNFINISHED and time.time() - stat.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        total = size + sum(each for _, each, _ in found)
        for _, each, path in sorted(found):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= each


def image_key(cache: EmbeddingCache, model: DualEncoder, view: object, data: str, batch_size: int) -> Key:
    """Return the key of a set's image embeddings.

    Args:
        cache: the cache, which has the digests of towers.
        model: the model; only what its image embeddings depend on is part of the key.
        view: the view of an image; its repr names its options.
        data: identity of the records.
        batch_size: rounding depends on it.
    """
    image = dataclasses.asdict(model.config.image) | {"pretrained": None, "size": model.image.size}
    tower = {"weights": cache.digest(model.image), "image": image, "pooling": repr(model.config.pooling)}
    return _surroundings(model) | {
        "kind": "images", "tower": json.dumps(tower, default=str), "view": f"{type(view).__module__}.{view!r}",
        "data": data, "batch_size": batch_size,
    }  # fmt: skip


def text_key(cache: EmbeddingCache, model: DualEncoder, texts: list[str], batch_size: int) -> Key:
    """Return the key of the embeddings of distinct texts, in their order."""
    tower = {"weights": cache.digest(model.text), "text": dataclasses.asdict(model.config.text)}
    return _surroundings(model) | {
        "kind": "texts", "tower": json.dumps(tower, default=str), "tokenizer": model.tokenizer.digest(),
        "data": hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest(), "batch_size": batch_size,
    }  # fmt: skip


def model_digest(cache: EmbeddingCache, model: DualEncoder) -> str:
    """Return the digest of all weights that evaluation reads, for results' files."""
    both = cache.digest(model.image) + cache.digest(model.text)
    return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()


@torch.no_grad()
def tower_digest(tower: nn.Module) -> str:
    """Return a digest of a module's parameters and buffers, and of the classes and plain public attributes in it.

    This gathers sharded tensors: call it on every process.
    """
    state = hashlib.blake2b(_attributes(tower).encode(), digest_size=16)
    for name, tensor in [*tower.named_parameters(), *tower.named_buffers()]:
        values = distributed.whole(tensor.detach()).cpu().contiguous()
        state.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        state.update(values.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _attributes(tower: nn.Module) -> str:
    """Return the class and the plain public attributes of every module as text, without `training`.

    FSDP2 replaces the class of some modules by a subclass, and gives all of them private attributes.
    """
    found = []
    for name, module in tower.named_modules():
        own = next(each for each in type(module).__mro__ if not issubclass(each, FSDPModule))
        public = {key: value for key, value in vars(module).items() if key != "training" and not key.startswith("_")}
        plain = [(key, value) for key, value in sorted(public.items()) if _is_plain(value)]
        found.append((name, own.__qualname__, plain))
    return repr(found)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(each is None or _is_plain(each) for each in value)
    return isinstance(value, bool | int | float | str)


def _surroundings(model: DualEncoder) -> dict[str, object]:
    """Return what rounding depends on besides: precision, device, versions, and the code from pixels to embeddings."""
    device = model.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "precision": [model.precision, torch.get_float32_matmul_precision()],
        "device": [device.type, kind],
        "code": _code_digest(),
    }


@functools.cache
def _code_digest() -> str:
    root = Path(mmrep.__file__).parent
    files = sorted(path for pattern in _CODE for path in root.glob(pattern))
    state = hashlib.blake2b(" ".join(version(package) for package in _PACKAGES).encode(), digest_size=16)
    for path in files:
        state.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


def _check(rows: Tensor) -> Tensor:
    values = rows.contiguous().flatten().view(torch.uint8).numpy().data
    return torch.tensor(list(hashlib.blake2b(values, digest_size=16).digest()), dtype=torch.uint8)


def _limit() -> int:
    text = os.environ.get(LIMIT) or str(LIMIT_GB)
    try:
        limit = float(text) * 1e9
    except ValueError as error:
        raise ConfigError(f"{LIMIT}: expected a number of GB, got {text!r}") from error
    require(0 <= limit < float("inf"), f"{LIMIT}: expected a number of GB from 0 up, got {text!r}")
    return int(limit)


def through_cache(
    cache: EmbeddingCache | None,
    count: int,
    key: Callable[[EmbeddingCache, int], Key],
    compute: Callable[[list[int]], list[Tensor]],
) -> list[Float[Tensor, "rows embed"]]:
    """Return `count` matrices, from the cache or else computed and stored there.

    Args:
        cache: None: compute all.
        count: number of matrices.
        key: returns the key of a matrix.
        compute: returns the matrices of some numbers. It is not called for none.
    """
    if cache is None:
        return compute(list(range(count)))
    keys = [key(cache, i) for i in range(count)]
    found = {i: rows for i, each in enumerate(keys) if (rows := cache.get(each)) is not None}
    missing = [i for i in range(count) if i not in found]
    for i, rows in zip(missing, compute(missing) if missing else [], strict=True):
        found[i] = rows
        if rows.isfinite().all():
            cache.put(keys[i], rows)
    return [found[i] for i in range(count)]


def embed_set_cached(
    models: Sequence[DualEncoder],
    records: Records,
    config: EvaluationConfig,
    cache: EmbeddingCache | None,
    name: str = "",
    quiet: bool = True,
) -> list[Float[Tensor, "images embed"]]:
    """Return `embed_set`, computed for the models that the cache lacks; if it has all, no image is decoded."""
    data = records.identity() if cache else ""
    return through_cache(
        cache,
        len(models),
        lambda cache, i: image_key(cache, models[i], centre_of(models[i]), data, config.batch_size),
        lambda missing: embed_set([models[i] for i in missing], records, config, name, quiet),
    )


def embed_texts_cached(
    model: DualEncoder, texts: Sequence[str], batch_size: int, cache: EmbeddingCache | None
) -> Float[Tensor, "texts embed"]:
    """Return `embed_texts`, from the cache if it has the embeddings of the distinct texts."""
    unique = sorted(set(texts))  # in one order, so that batches, and with them rounding, are the same
    (rows,) = through_cache(
        cache,
        1,
        lambda cache, _: text_key(cache, model, unique, batch_size),
        lambda _: [embed_texts(model, unique, batch_size)],
    )
    places = {text: row for row, text in enumerate(unique)}
    return rows[[places[text] for text in texts]]


def require_finite(rows: Float[Tensor, "rows embed"], model: str, what: str) -> None:
    """Raise MmrepError if embeddings of a model are not finite; `what` names them and their set."""
    if not rows.isfinite().all():
        raise MmrepError(f"model {model}: its {what} are not finite; did training diverge?")
