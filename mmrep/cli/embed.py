"""`mmrep embed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmrep import __version__
from mmrep.cli.models import ModelsAndSets, find_device, is_quiet, open_local, require_free, require_writable
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.config.checks import require
from mmrep.config.evaluation import EvaluationConfig, SetConfig


@dataclass(frozen=True, kw_only=True)
class Options(ModelsAndSets):
    """Write embeddings of unit length as OUTPUT_DIR/MODEL/DATASET/images.npy and texts.npy.

    Attributes:
        output_dir: A new folder, or an empty one.
        texts: Files with one text a line.
        format: The format: npy, with the ids in a .jsonl next to it, or parquet.
        dtype: The type of the numbers.
    """

    output_dir: str
    texts: list[str] = field(default_factory=list)
    format: Literal["npy", "parquet"] = "npy"
    dtype: Literal["float32", "float16"] = "float32"


def run(options: Options, _: list[str]) -> None:
    """Write embeddings.

    Raises:
        ConfigError: wrong use.
        MmrepError: unreadable data, or a model that does not fit.
    """
    configs = options.read_suites(["auto"], joined=True)
    config = configs[0] if configs else options.applied(EvaluationConfig())
    require(bool(config.sets or options.texts), "nothing to embed: give --data DIR, --suite FILE or --texts FILE")
    names, output = options.names(), Path(options.output_dir)
    require_free("--output_dir", output)
    from mmrep.data.paths import read_lines

    texts = {Path(file).stem: read_lines(file, "--texts") for file in options.texts}
    taken = [*texts, *(each.result_name for each in config.sets)]
    require(len(taken) == len(options.texts) + len(config.sets), "--texts: two files of one name")
    require(len(set(taken)) == len(taken), "--texts: a file has the name of a set: rename it")

    from mmrep import distributed
    from mmrep.evaluation.context import Context
    from mmrep.evaluation.embedding.cache import embed_texts_cached, require_finite
    from mmrep.evaluation.embedding.embed import warn_of_cut
    from mmrep.evaluation.embedding.written import Form, check_form, write_set, write_texts
    from mmrep.evaluation.sets import open_set

    form = Form(options.format, options.dtype)
    check_form(form)
    device = find_device(options.device)
    sets = open_local(config.sets)
    require_writable("--output_dir", output)
    cache, models, about = options.load(names, device)
    facts = {name: {"mmrep": __version__, "model": {"name": name, **about["models"][name]}} for name in models}
    used = cache if options.cache else None
    written = []
    for each in sets:
        evalset = open_set(each) if isinstance(each, SetConfig) else each
        context = Context(models, evalset, config, is_quiet(), used)
        written += write_set(output, context, facts, form)
    for stem, lines in texts.items():
        for name, model in models.items():
            warn_of_cut(lines, model.tokenizer, stem, [name])
            rows = embed_texts_cached(model, lines, config.text_batch_size, used)
            require_finite(rows, name, f"embeddings of {stem}")
            if distributed.rank() == 0:
                written.append(write_texts(output, name, stem, lines, rows, facts[name], form))
    if distributed.rank() == 0:
        say("\n".join(f"written: {place}" for place in written))
    distributed.stop()


VERB = Verb(
    Options,
    run,
    positional="model",
    lead=("model", "data", "suite", "texts", "output_dir", "format", "dtype", "split", "batch_size", "device"),
    examples=("mmrep embed --model runs/x --data data/flickr8k_sample --output_dir embeddings",),
)
