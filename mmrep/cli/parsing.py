"""Parsing a verb's words and YAML files into its dataclass. Whatever is wrong with them is one line."""

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mmrep.config.checks import ConfigError, hint, quoted, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.config.pools import load_plugins
from mmrep.strict_yaml import LARGEST_TEXT, read_yaml

T = TypeVar("T")
LONGEST = 400
"""Characters of a message about a config."""

ELSEWHERE = {
    "learning_rate": "use optim.lr",
    "wd": "use optim.weight_decay",
    "grad_clip_norm": "use optim.clip_norm",
    "batch_size": "use training.global_batch (pairs of all processes)",
    "epochs": "use training.steps (steps = epochs × samples / global batch)",
    "accum_freq": "this version has no gradient cache, so all pairs of a step pass at once",
    "img_size": "use model.image.args.img_size",
    "image_size": "use model.image.args.img_size",
    "force_image_size": "use model.image.args.img_size",
    "force_patch_dropout": "use model.image.patch_dropout",
    "precision": "use training.precision",
    "grad_checkpointing": "use training.grad_checkpointing",
    "torchcompile": "use training.compile",
    "workers": "use data.workers",
    "train_data": "use data.train",
    "dataset_resampled": "leave it out: epochs are exact",
    "val_data": "use evaluation.sets, or data.validation.fraction for a held-out part",
    "imagenet_val": "use evaluation.sets",
    "pretrained": "use model.weights, or model.image.pretrained for timm's weights of the trunk",
    "siglip": "use loss.kind sigmoid",
    "logs": "use output_dir",
    "name": "use output_dir",
    "save_frequency": "use training.checkpoint_minutes or training.checkpoint_steps",
}
"""Advice for options of open_clip and similar words that have another name here."""


def _same(argv: list[str]) -> list[str]:
    return argv


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        options: its dataclass. Docstrings are the help.
        run: does the work. It gets the options, and the words as they were typed.
        positional: the field that words before the first option belong to.
        lead: dotted names of the options that matter most; empty where all fit a screen.
        examples: command lines for the help.
        prepare: completes the words with defaults that depend on them.
        study: the dataclass for a config file that has a `study`; None means `options`.
    """

    options: type
    run: Callable[[Any, list[str]], None]
    positional: str | None = None
    lead: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    prepare: Callable[[list[str]], list[str]] = _same
    study: type | None = None

    def kind(self, argv: list[str]) -> type:
        """Return the dataclass that the words are parsed into."""
        has_study = self.study is not None and any("study" in content for content in read_configs(argv))
        return self.study if self.study and has_study else self.options


class Option(NamedTuple):
    """An option as it was typed: its dotted name, and its value as YAML text."""

    name: str
    value: str


def parse(kind: type[T], verb: str, argv: Sequence[str], positional: str | None = None) -> T:
    """Return a verb's dataclass from YAML files and options.

    Later files and options override earlier ones key by key. A list replaces a list; on the command line it may be
    given as several words. An entry of a list is addressed by its number from 0 (`--data.train[0].shards DIR`), which
    may be left out where the list has one entry. Dashes in names of options stand for underscores. A flag needs no
    value: `--cache` and `--no_cache`.

    Args:
        kind: the dataclass.
        verb: name of the verb, for messages.
        argv: the words after the verb.
        positional: the field that words before the first option belong to.

    Raises:
        ConfigError: unknown key, wrong type, impossible value; one line.
    """
    from jsonargparse import ArgumentParser

    files, options, flags = _split(kind, argv, positional)
    content: dict[Any, Any] = {}
    for file in files:
        each = _read_config(file)
        try:
            check_keys(kind, each)
        except ConfigError as error:
            raise ConfigError(f"--config {file}: {error}") from error
        content = _overlaid(content, each)
    load_plugins(_plugins(content, options))
    rest = _fold(content, options)
    check_keys(kind, content)
    parser = ArgumentParser(prog=f"mmrep {verb}", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(kind)
    words = [*(["--config", yaml_text(content)] if content else []), *rest, *flags]
    try:
        values = vars(parser.instantiate(parser.parse_args(words)))
        values.pop("config")
        return kind(**values)
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, OverflowError) as error:
        text = _explain(error, kind)
        raise ConfigError(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…") from error


def config_files(argv: Sequence[str]) -> list[str]:
    """Return the YAML files that `--config` names."""
    names = [value for name, value in pairwise(argv) if name == "--config" and not value.startswith("--")]
    return names + [option.partition("=")[2] for option in argv if option.startswith("--config=")]


def read_configs(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Return the contents of the YAML files that `--config` names.

    Raises:
        ConfigError: a file is missing, unreadable, not YAML, or no mapping.
    """
    return [_read_config(file) for file in config_files(argv)]


def read_suite(file: str) -> EvaluationConfig:
    """Return the content of a suite: sets, speed, and options of tasks.

    Raises:
        ConfigError: see `parse`; the line begins with the file.
    """
    require(Path(file).is_file(), f"--suite: no such file: {file}")
    try:
        return parse(EvaluationConfig, "eval", ["--config", file])
    except ConfigError as error:
        raise ConfigError(f"{file}: {str(error).removeprefix(f'--config {file}: ')}") from error


def yaml_text(content: Any) -> str:
    """Return plain data as YAML without aliases."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _: Any) -> bool:
            return True

    return yaml.dump(content, Dumper=Plain, sort_keys=False)


def check_keys(kind: Any, content: dict[Any, Any], place: str = "", root: Any = None) -> None:
    """Raise ConfigError for the first key that a config's dataclass, or one within it, does not have.

    Args:
        kind: the dataclass.
        content: the mapping to be read as one.
        place: the place of that mapping in the config, before the key.
        root: the verb's dataclass, for suggestions; None means `kind`.
    """
    root = root or kind
    hints = typing.get_type_hints(kind)
    for key, value in content.items():
        if key not in hints:
            raise ConfigError(_unknown(f"{place}{key}", root))
        inner = _dataclass_in(hints[key])
        several = isinstance(value, list)
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            own = f"{place}{key}" + (f"[{number}]" if several else "")
            if inner and isinstance(part, dict):
                check_keys(inner, part, f"{own}.", root)
            elif inner and several:
                first = next(iter(typing.get_type_hints(inner)))
                raise ConfigError(f"{own}: expected keys and values, as in {{{first}: …}}, got {quoted(part)}")


def option_names(kind: Any, place: str = "") -> Iterator[str]:
    """Yield the dotted names of all options of a dataclass."""
    for name, hinted in typing.get_type_hints(kind).items():
        inner = hinted if dataclasses.is_dataclass(hinted) else None
        if inner:
            yield from option_names(inner, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def _split(kind: Any, argv: Sequence[str], positional: str | None) -> tuple[list[str], list[Option], list[str]]:
    """Return the files, the options with their values, and the flags that jsonargparse itself serves."""
    words = list(argv)
    files: list[str] = []
    options: list[Option] = []
    flags: list[str] = []
    if words and positional and not words[0].startswith("--"):
        words.insert(0, f"--{positional}")
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(
                f"unexpected {quoted(word)}: options begin with --, and every file needs a --config of its own"
            )
        name, equals, value = word.removeprefix("--").partition("=")
        if name == "print_config":
            flags.append(word)
            continue
        name = re.sub(r"-(?=\w)", "_", name) if "[" not in name else name
        if dataclasses.is_dataclass(_type_at(kind, name)):
            inner = ", ".join(f"--{name}.{each}" for each in typing.get_type_hints(_type_at(kind, name)))
            raise ConfigError(f"--{name}: a group of options: {inner}")
        following: list[str] = []
        while not equals and words and not words[0].startswith("--") and (not following or _is_list(kind, name)):
            following.append(words.pop(0))
        given = [value] if equals else following
        if not given:
            if _type_at(kind, name.removeprefix("no_")) is bool:
                given, name = [str(not name.startswith("no_")).lower()], name.removeprefix("no_")
            elif _type_at(kind, name) is None and name != "config":
                raise ConfigError(_unknown(name, kind))
            require(bool(given), f"--{name}: expected a value")
        if name == "config":
            files += given
        else:
            _add(options, kind, name, given)
    return files, options, flags


def _add(options: list[Option], kind: Any, name: str, given: list[str]) -> None:
    """Append an option. Words for a list become a list; given again, they extend it."""
    hinted = _type_at(kind, name)
    require(given != [""] or hinted in (str, None), f"--{name}: expected a value, got an empty text")
    nothing = given == ["null"] and type(None) in typing.get_args(hinted)
    if not _is_list(kind, name) or given[0].lstrip().startswith("[") or nothing:
        options.append(Option(name, given[0]))
        return
    item = next((each for each in typing.get_args(hinted) if each is not type(None)), str)
    if item in (int, float) or name == "plugins":
        given = [part for word in given for part in word.split(",")]
    entries = [json.dumps(word) if item is str else word for word in given]
    before = next((i for i, option in enumerate(options) if option.name == name), None)
    text = f"[{', '.join(entries)}]"
    if before is not None and options[before].value.endswith("]"):
        text = f"{options.pop(before).value[:-1]}, {text[1:]}"
    options.append(Option(name, text))


def _plugins(content: dict[Any, Any], options: Sequence[Option]) -> list[str]:
    """Return the modules to import before pooling heads are checked."""
    given = [read_yaml(option.value, "--plugins") for option in options if option.name == "plugins"]
    modules = given[-1] if given else content.get("plugins") or []
    require(
        isinstance(modules, list) and all(isinstance(name, str) for name in modules),
        f"plugins: expected a list of modules, got {quoted(modules)}",
    )
    return modules


def _fold(content: dict[Any, Any], options: Sequence[Option]) -> list[str]:
    """Put options on lists and poolings into the files' content; return all others as words for jsonargparse.

    jsonargparse fills an entry of a list that replaces another from that one, and takes an option on a list for one on
    its last entry. So both are settled here.
    """
    rest: list[str] = []
    # A pooling's name before its arguments, in whatever order they were typed.
    for name, value in sorted(options, key=lambda option: option.name.startswith("model.pool.args.")):
        path = name.split(".")
        if path[:2] == ["model", "pool"]:
            model = content.setdefault("model", {})
            require(isinstance(model, dict), f"model: expected keys and values, got {quoted(model)}")
            model["pool"] = _pool(model.get("pool", "avg"), ".".join(path[2:]), value)
        elif value.lstrip().startswith("[") or "[" in name or _crosses_list(content, path):
            _put(content, path, read_yaml(value, f"--{name}"), f"--{name}")
        else:
            rest.append(f"--{name}={value}")
    return rest


def _pool(current: Any, part: str, text: str) -> dict[str, Any]:
    """Return a pooling after an option `--model.pool[.PART]`. Another name drops the old one's arguments."""
    value = read_yaml(text, f"--model.pool {text[:80]}")
    if not part:
        return _pool_mapping("--model.pool", value)
    old = _pool_mapping("model.pool", current)
    if part == "name":
        return old if old.get("name") == value else {"name": value}
    if part.startswith("args."):
        return {**old, "args": {**(old.get("args") or {}), part.removeprefix("args."): value}}
    raise ConfigError(f"--model.pool.{part}: unknown option (valid: --model.pool, .name, .args.NAME)")


def _pool_mapping(where: str, value: Any) -> dict[str, Any]:
    named = {"name": value} if isinstance(value, str) else value
    require(
        isinstance(named, dict) and bool(named.get("name")),
        f"{where}: expected a name, or {{name: ggem, args: {{groups: 12}}}}, got {value!r}",
    )
    return dict(named)


def _overlaid(base: Any, over: Any) -> Any:
    """Return `over` over `base`: mappings key by key, all else replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: _overlaid(base.get(key), value) for key, value in over.items()}}


def _crosses_list(content: Any, path: list[str]) -> bool:
    """Return whether a dotted path leads to a list of the files, or into one."""
    for part in path:
        if isinstance(content, list):
            return True
        content = content.get(part) if isinstance(content, dict) else None
    return isinstance(content, list)


def _put(content: dict[Any, Any], path: list[str], value: Any, option: str) -> None:
    """Set a value at a path such as `data.train[0].shards`.

    Raises:
        ConfigError: the path goes into a list of several entries without a number, or past its end.
    """
    steps: list[str | int] = []
    for part in path:
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", part)
        if match is None:
            raise ConfigError(f"{option}: expected names and numbers, as in --data.train[0].shards")
        steps += [match[1], *map(int, re.findall(r"\d+", match[2]))]
    node: Any = content
    for i, step in enumerate(steps):
        done, left = _place(steps[:i]), _place(steps[i:])
        if isinstance(node, list) and isinstance(step, str):
            if len(node) != 1:
                raise ConfigError(
                    f"{option}: {done} is a list of {len(node)}: say which entry, as in --{done}[0].{left}, or give "
                    "the whole list"
                )
            node = node[0]
        fits = isinstance(node, list) if isinstance(step, int) else isinstance(node, dict)
        if not fits and isinstance(step, str):
            raise ConfigError(f"{option}: {done} is {quoted(node)}, which has no {left}")
        if not fits or (isinstance(step, int) and step >= len(node)):
            entries = f"a list of {len(node)}, numbered from 0" if isinstance(node, list) else "no list in the files"
            raise ConfigError(f"{option}: {done} is {entries}")
        if i + 1 == len(steps):
            node[step] = value
        else:
            node = node[step] if isinstance(step, int) else node.setdefault(step, {})


def _place(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def _type_at(kind: Any, name: str) -> Any:
    """Return the type of a dotted option, or None where there is no such option."""
    for part in name.split("."):
        inner = _dataclass_in(kind)
        kind = typing.get_type_hints(inner).get(part.partition("[")[0]) if inner else None
        for _ in range(part.count("[")):
            kind = next(iter(typing.get_args(kind)), None)
    return kind


def _is_list(kind: Any, name: str) -> bool:
    """Return whether an option takes several words: a list that is not one of several alternatives but None."""
    hinted = _type_at(kind, name)
    if typing.get_origin(hinted) in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(hinted) if each is not type(None)]
        hinted = kinds[0] if len(kinds) == 1 else None
    return typing.get_origin(hinted) in (list, tuple)


def _dataclass_in(hinted: Any) -> Any:
    """Return the dataclass that a type is, or that it is a list of."""
    return next((each for each in (hinted, *typing.get_args(hinted)) if dataclasses.is_dataclass(each)), None)


def _read_config(file: str) -> dict[str, Any]:
    require(not Path(file).is_dir(), f"--config: {file} is a folder, not a file")
    require(Path(file).is_file(), f"--config: no such file: {file}")
    try:
        require(Path(file).stat().st_size <= LARGEST_TEXT, f"--config {file}: too large for a config")
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: can't be read as UTF-8 text: {error}") from error
    content = read_yaml(text, f"--config {file}")
    kind = "an empty file" if content is None else type(content).__name__
    require(isinstance(content, dict), f"--config {file}: expected keys and values at the top, got {kind}")
    return content


def _explain(error: Exception, kind: Any) -> str:
    """Return jsonargparse's message in the user's words: the key, what was expected, the nearest right one."""
    text = " ".join(str(getattr(error, "message", None) or error).replace("Parser key ", "").split())
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"Problem with given class_path '[\w.]+': ", "", text)
    unknown = re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --([\w.-]+)", text)
    if unknown:
        return _unknown((unknown[1] or unknown[2]).partition("=")[0], kind)
    union = re.search(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: .* value: ?(.*)", text
    )
    if union:
        text = f"{text[: union.start()]}Expected a {union[1]}. Got value: {union[2]}"
    wrong = re.search(r"^\W*([\w.\[\]]+)\W+Expected an? (.+)\. Got value: ?(.*)", text)
    if wrong:
        place, kinds, value = wrong.groups()
        choices = re.findall(r"'([^']*)'", kinds)
        if choices:
            near = hint(value, choices)
            return f"{place}: unknown value {quoted(value)}{near} (valid: {', '.join(choices)})"
        named = dict.fromkeys(kind for kind in kinds.split(", ") if kind != "NoneType")
        return f"{place}: expected {' or '.join(named)}, got {quoted(value)}"
    missing = re.search(r"following arguments are required: (.+)", text)
    if missing:
        return f"missing: {', '.join('--' + name.strip() for name in missing[1].split(','))}"
    return text.replace('"', "", 2) if text.startswith('"') else text


def _unknown(key: str, kind: Any) -> str:
    """Return what is said of an unknown key, with the name that the user may have meant.

    Args:
        key: the dotted key.
        kind: the verb's dataclass.
    """
    names = list(option_names(kind))
    place, _, last = key.rpartition(".")
    inner = _dataclass_in(_type_at(kind, place) if place else kind)
    siblings = list(typing.get_type_hints(inner or kind))
    if key.partition(".")[0] == "study":
        return f"unknown key {quoted(key)}: studies are run by `mmrep compare`"
    if last in ELSEWHERE and "optim.lr" in names:
        return f"unknown key {quoted(key)}; {ELSEWHERE[last]}"
    same = next((f"; did you mean {name!r}?" for name in names if name.endswith(f".{last}")), "")
    near = hint(last, siblings)
    if place and "[" not in place:
        near = near.replace("'", f"'{place}.", 1)
    near = near or same or ("" if place else hint(key, names))
    return f"unknown key {quoted(key)}{near or '; valid: ' + ', '.join(siblings)}"
