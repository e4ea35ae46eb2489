"""Names of results' files and folders, and checks that no two are equal."""

from collections.abc import Iterable, Sequence

from mmrep.config.checks import require


def model_folder(model: str) -> str:
    """Return the folder name of a model, whose own name may be a path."""
    return model.replace("/", "_")


def file_stem(evalset: str, own_task: str, task: str) -> str:
    """Return what files of a set and task begin with: the set's name, and the task unless it is the set's own."""
    return evalset if task == own_task else f"{evalset}.{task}"


def check_model_names(models: Iterable[str]) -> None:
    """Raise ConfigError where two models would write into one folder."""
    taken: dict[str, str] = {}
    for model in models:
        other = taken.setdefault(model_folder(model), model)
        require(
            other == model,
            f"models {other!r} and {model!r} would both write to outcomes/{model_folder(model)}; rename one",
        )


def check_set_names(sets: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Check that each set has a name of its own, which no other set's files have.

    Args:
        sets: name and tasks of each set.

    Raises:
        ConfigError: two that would write to one file.
    """
    names = [name for name, _ in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{names.count(twice or '')} evaluation sets are named {twice!r}; give each its own `name`")
    stems = {f"{name}.{task}": task for name, tasks in sets for task in tasks}
    wrong = next((name for name in names if name in stems), None)
    require(
        wrong is None,
        f"evaluation set {wrong!r} would write to the files of {(wrong or '').rpartition('.')[0]!r} under task "
        f"{stems.get(wrong or '')}; give it another `name`",
    )
