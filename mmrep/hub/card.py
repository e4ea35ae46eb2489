"""The model card: the recipe and the results of a run as the README of its Hub repository."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmrep.config.checks import ConfigError, require
from mmrep.markup import markdown_cell, markdown_code

LOAD = """\
```python
import mmrep
import torch
from PIL import Image

model = mmrep.load("hf-hub:{repo_id}")
image = model.preprocess(Image.open("photo.jpg")).unsqueeze(0)
text = model.tokenizer(["a photo of a dog", "a photo of a cat"])
with torch.no_grad():
    similarity = model.encode_image(image) @ model.encode_text(text).T
```
"""

LOAD_OPEN_CLIP = """\
The same weights for open_clip:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repo_id}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repo_id}")
```
"""


def model_card(
    repo_id: str,
    config: Mapping[str, Any] | None,
    results: Sequence[Mapping[str, Any]] | None,
    license: str | None = None,
    version: str | None = None,
    files: Collection[str] = (),
) -> str:
    """Return the README.md of a model: metadata, how to load it, recipe, results.

    The same input gives the same text.

    Args:
        repo_id: `user/name`.
        config: the run's resolved config, or None if it is unknown.
        results: the entries of the run's results.json, or None if there are none.
        license: identifier of the weights' licence. Without one, the card says that none is stated.
        version: version of mmrep that made the model.
        files: names in the repository. The card explains an open_clip export among them.

    Raises:
        ConfigError: `license` is not an identifier, or an entry of `results` has no metrics.
    """
    from huggingface_hub import EvalResult, ModelCardData

    require(
        license is None or re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license) is not None,
        f"license: expected an identifier such as apache-2.0, mit, cc-by-4.0 or other, got {license!r}",
    )
    name = repo_id.split("/")[-1]
    pool = _pool(config)
    open_clip = "open_clip_config.json" in files
    measured = list(_measured(results or []))
    metadata = ModelCardData(
        library_name="mmrep",
        pipeline_tag="zero-shot-image-classification",
        license=license,
        tags=["clip", "image-text", *(["open_clip"] if open_clip else []), *([f"pooling-{pool[0]}"] if pool else [])],
        model_name=name,
        eval_results=[
            EvalResult(entry["task"], entry["dataset"], entry["dataset"], metric, value)
            for entry, metric, value, _ in measured
            if entry.get("task") and entry.get("dataset") and _is_finite(value)
        ]
        or None,
    )
    parts = [f"---\n{metadata.to_yaml()}\n---\n", f"# {name}\n", _summary(config) + "\n"]
    parts += ["## Use\n", LOAD.format(repo_id=repo_id)]
    if plugins := _plugins(config):
        parts.append(f"Its pooling head is not part of mmrep. Before you load the model, import {plugins}.\n")
    if open_clip:
        parts.append(LOAD_OPEN_CLIP.format(repo_id=repo_id))
    parts += ["## Recipe\n", _recipe(config, version)]
    parts += ["## Results\n", _results(measured)]
    if license is None:
        parts += ["## Licence\n", "No licence is stated for these weights: ask their author.\n"]
    return "\n".join(parts)


def _measured(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Any, Any]]:
    """Yield entry, metric, value and chance level of everything that was measured."""
    for entry in results:
        metrics, chance = entry.get("metrics"), entry.get("chance") or {}
        if not isinstance(metrics, Mapping) or not isinstance(chance, Mapping):
            raise ConfigError(f"results: entry {json.dumps(entry)[:200]} has no metrics")
        for metric, value in metrics.items():
            yield entry, metric, value, chance.get(metric)


def _summary(config: Mapping[str, Any] | None) -> str:
    """Return what the model is, in one or two sentences."""
    pool = _pool(config)
    if config is None or pool is None:
        return "An image-text dual encoder made with mmrep."
    sources = _sources(config)
    # Captions made from class names carry labels only: such a model must not pass for one trained on texts.
    named = bool(sources) and all(source.get("caption") == "cls" for source in sources)
    how = "by class-name contrast (captions made from class labels)" if named else "contrastively on image-text pairs"
    trunk, name = _get(config, "model.image.trunk"), _get(config, "model.name")
    tower = "image tower"
    if trunk or name:
        tower += f", a {_code(trunk)}," if trunk else f", that of {_code(name)},"
    return f"A dual encoder trained {how} with mmrep. Its {tower} pools with {_code(pool[0])}."


def _recipe(config: Mapping[str, Any] | None, version: str | None) -> str:
    if config is None:
        return "The recipe is not recorded: this repository was made from the model's files alone.\n"
    steps, batch = _get(config, "training.steps"), _get(config, "training.global_batch")
    pairs = f"{steps * batch:,}" if isinstance(steps, int) and isinstance(batch, int) else None
    name, args = _pool(config) or (None, {})
    norm, schedule = _get(config, "model.image.norm"), _get(config, "optim.schedule")
    of_schedule = ["warmup", *{"cosine": ["min_lr"], "cooldown": ["cooldown", "min_lr"]}.get(schedule, [])]
    preserved = _get(config, "model.pool_init") == "preserve"
    rows = {
        "pooling": _with(name, args),
        "final LayerNorm": f"{_text(norm)} pooling" if norm else None,
        "model": _code(_get(config, "model.name")),
        "trunk": _with(_get(config, "model.image.trunk"), _get(config, "model.image.args")),
        "trunk's pretrained weights": "yes" if _get(config, "model.image.pretrained") else "no",
        "started from": _code(_get(config, "model.weights")),
        "new head at the start": "preserved the trained embedding" if preserved else None,
        "embedding width": _text(_get(config, "model.embed_dim")),
        "loss": _with(_get(config, "loss.kind"), {"duplicates": _get(config, "loss.duplicates")}),
        "data": "<br>".join(_source(source) for source in _sources(config)) or None,
        "steps": _text(steps),
        "global batch": _text(batch),
        "pairs seen": pairs,
        "learning rate": _text(_get(config, "optim.lr")),
        "schedule": _with(schedule, {key: _get(config, f"optim.{key}") or None for key in of_schedule}),
        "weight decay": _text(_get(config, "optim.weight_decay")),
        "AdamW beta1": _text(_get(config, "optim.beta1")),
        "AdamW beta2": _text(_get(config, "optim.beta2")),
        "precision": _text(_get(config, "training.precision")),
        "seed": _text(_get(config, "seed")),
        "mmrep": _text(version),
    }
    table = _table(("", ""), [(key, value) for key, value in rows.items() if value])
    return f"{table}\nThe whole config is `config.yaml`.\n"


def _results(measured: Sequence[tuple[Mapping[str, Any], str, Any, Any]]) -> str:
    if not measured:
        return "No results are recorded for this model.\n"
    rows = [
        (
            *(markdown_cell(entry.get(field, "")) for field in ("dataset", "task", "n")),
            markdown_code(metric),
            *(f"{each:.4f}" if isinstance(each, int | float) else "–" for each in (value, chance)),
        )
        for entry, metric, value, chance in measured
    ]
    return _table(("dataset", "task", "n", "metric", "value", "chance"), rows) + (
        "\nn: number of samples; chance: expected value of a model that guesses. `results.json` has them as JSON.\n"
    )


def _plugins(config: Mapping[str, Any] | None) -> str:
    """Return the modules that the run took pooling heads from, as code."""
    names = (config or {}).get("plugins") or []
    return " and ".join(map(markdown_code, names)) if isinstance(names, list) else ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _get(config: Mapping[str, Any] | None, path: str) -> Any:
    """Return the value at `a.b.c`, or None if there is none."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _pool(config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """Return name and arguments of the pooling head, from the short or the long form."""
    pool = _get(config, "model.pool")
    if isinstance(pool, Mapping) and pool.get("name"):
        return str(pool["name"]), dict(pool.get("args") or {})
    return (pool, {}) if isinstance(pool, str) else None


def _sources(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sources = _get(config, "data.train")
    return [source for source in sources if isinstance(source, Mapping)] if isinstance(sources, list) else []


def _source(source: Mapping[str, Any]) -> str:
    shards = source.get("shards")
    listed = ", ".join(str(_code(shard)) for shard in (shards if isinstance(shards, list) else [shards]))
    weight = f", weight {source['weight']}" if source.get("weight") is not None else ""
    return f"{listed} (captions: {_code(source.get('caption', 'txt'))}{weight})"


def _with(name: Any, args: Mapping[str, Any] | None) -> str | None:
    """Return a name with its arguments in brackets."""
    if name is None:
        return None
    listed = ", ".join(
        f"{markdown_cell(key)} {markdown_cell(value)}" for key, value in (args or {}).items() if value is not None
    )
    return f"{_code(name)}" + (f" ({listed})" if listed else "")


def _text(value: Any) -> str | None:
    return None if value is None else markdown_cell(value)


def _code(value: Any) -> str | None:
    return None if value is None else markdown_code(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
