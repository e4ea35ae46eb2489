"""Files of embeddings for other tools: npy (memory-mappable) or parquet, with ids and a description in meta.json."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrep import distributed
from mmrep.config.checks import require
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import centre_of
from mmrep.evaluation.outcome_names import model_folder
from mmrep.evaluation.tasks.retrieval import flat_captions
from mmrep.files import whole_folder

SCHEMA = 1
Format = Literal["npy", "parquet"]
Dtype = Literal["float32", "float16"]


class Form(NamedTuple):
    """The form of written embeddings.

    Attributes:
        format: `npy`: NAME.npy, (rows, width), and NAME.jsonl with a line for each row; `parquet`: NAME.parquet with a
            column `embedding`.
        dtype: type of the numbers.
    """

    format: Format = "npy"
    dtype: Dtype = "float32"


def check_form(form: Form) -> None:
    """Check, before any work is done, that a form can be written.

    Raises:
        ConfigError: parquet without pyarrow.
    """
    found = form.format == "npy" or importlib.util.find_spec("pyarrow") is not None
    require(found, "--format parquet needs pyarrow: pip install 'mmrep[parquet]', or use --format npy")


def write_set(folder: Path, context: Context, about: Mapping[str, Mapping[str, Any]], form: Form) -> list[Path]:
    """Write FOLDER/MODEL/DATASET/: `images` (rows in the set's order), for captions `texts`, and meta.json.

    For sets of the task pairs, ids of texts say whether the caption is the image's right one. Call it on every process;
    the first writes.

    Args:
        folder: the folder of all models.
        context: the set and the models.
        about: for each model, what meta.json says about it.
        form: the form of the files.

    Returns:
        The folders, one for each model.
    """
    evalset = context.evalset
    captions, image_of_text = flat_captions(context.texts) if _has_captions(context) else ([], torch.zeros(0))
    texts = {name: context.encode_texts(model, captions) for name, model in context.models.items() if captions}
    by_model = dict(zip(context.models, context.images, strict=True))
    places = {name: folder / model_folder(name) / evalset.name for name in by_model}
    if distributed.rank() == 0:
        data = {"name": evalset.name, "digest": evalset.records.digest()}
        image_ids = _image_ids(context)
        text_ids = _text_ids(context, captions, image_of_text.tolist())
        for name, images in by_model.items():
            with whole_folder(places[name]) as part:
                _write_rows(part / "images", images, image_ids, form)
                if captions:
                    _write_rows(part / "texts", texts[name], text_ids, form)
                counts = {"dataset": data, "images": len(images), "texts": len(captions), "dim": images.shape[1]}
                view = {"view": repr(centre_of(context.models[name]))}
                _write_meta(part, about[name], counts | view, form)
    return list(places.values())


def write_texts(
    folder: Path, model: str, name: str, texts: Sequence[str], rows: Float[Tensor, "texts embed"],
    about: Mapping[str, Any], form: Form,
) -> Path:  # fmt: skip
    """Write FOLDER/MODEL/NAME/ with `texts` and meta.json; return that folder."""
    place = folder / model_folder(model) / name
    with whole_folder(place) as part:
        _write_rows(part / "texts", rows, [{"text": text} for text in texts], form)
        counts = {"dataset": {"name": name}, "images": 0, "texts": len(texts), "dim": rows.shape[1]}
        _write_meta(part, about, counts, form)
    return place


def _image_ids(context: Context) -> list[dict[str, Any]]:
    evalset = context.evalset
    keys = evalset.keys()
    ids: list[dict[str, Any]] = [{"key": key} for key in keys]
    for position, row in enumerate(ids):
        if _has_captions(context):
            row["captions"] = context.texts[position]
        elif evalset.multilabel:
            row["labels"] = evalset.records.labels(position)
        elif evalset.task == "zeroshot":
            row["label"] = context.labels[position]
    return ids


def _has_captions(context: Context) -> bool:
    return context.evalset.task in ("retrieval", "pairs")


def _text_ids(context: Context, captions: Sequence[str], image_of_text: Sequence[int]) -> list[dict[str, Any]]:
    ids: list[dict[str, Any]] = [
        {"text": text, "image": image} for text, image in zip(captions, image_of_text, strict=True)
    ]
    if "pairs" in context.evalset.tasks:
        # The right caption is an image's first.
        for before, row in zip([-1, *image_of_text], ids, strict=False):
            row["right"] = row["image"] != before
    return ids


def _write_rows(place: Path, rows: Tensor, ids: Sequence[Mapping[str, Any]], form: Form) -> None:
    values = rows.to(getattr(torch, form.dtype)).numpy()
    if form.format == "npy":
        np.save(place.with_suffix(".npy"), values, allow_pickle=False)
        with place.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ids)
        return
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in ids] for name in ids[0]}
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
    parquet.write_table(pyarrow.table(columns), place.with_suffix(".parquet"))


def _write_meta(place: Path, about: Mapping[str, Any], counts: Mapping[str, Any], form: Form) -> None:
    content = {"schema": SCHEMA, **about, **counts, **form._asdict(), "normalised": True}
    (place / "meta.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
