"""Upload of a finished run to the Hub: model, config, results and card in one commit."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from mmrep import __version__
from mmrep.config.checks import ConfigError, require
from mmrep.hub.card import model_card
from mmrep.model.hub_files import (
    MODEL_FILES,
    OPEN_CLIP_FILES,
    HubError,
    call_hub,
    check_repo_id,
    hub_endpoint,
    is_model_config,
    spellings,
)
from mmrep.strict_yaml import read_yaml

OWN_FILES = (*MODEL_FILES, *OPEN_CLIP_FILES, "config.yaml", "results.json")
"""Files that describe one model. Those of an earlier upload that a new one lacks are removed by it: two models mixed up
in one folder load without an error and give wrong answers."""

LICENCES = ("LICENSE", "LICENSE.*", "LICENCE", "LICENCE.*", "NOTICE")
"""Further files of `final/` that are uploaded."""

LARGEST_TEXT = 10_000_000

MESSAGE = f"Upload model with mmrep {__version__}"


class PushResult(NamedTuple):
    """What an upload did, or would do.

    Attributes:
        url: of the repository.
        commit: id of the commit; None in a dry run.
        files: size in bytes of every file by its name in the repository.
        card: text of README.md.
        removed: files of an earlier upload that were removed.
    """

    url: str
    commit: str | None
    files: dict[str, int]
    card: str
    removed: tuple[str, ...] = ()


class RunFiles(NamedTuple):
    """A finished run, or a bare model folder.

    Attributes:
        files: path of every file by its name in the repository, or its content where that is not the file's own.
        config: the resolved config, as it is published; None for a bare model folder.
        results: the entries of results.json; None where there are none.
        version: version of mmrep that made the model.
    """

    files: dict[str, Path | bytes]
    config: dict[str, Any] | None
    results: list[dict[str, Any]] | None
    version: str


def push(
    run: str | Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    license: str | None = None,
    extra: Mapping[str, Path] | None = None,
) -> PushResult:
    """Uploads a run to the Hub in one commit: all of it arrives, or nothing.

    Args:
        run: a run's folder, its `final/`, or a bare model folder (config.json and model.safetensors).
        repo_id: `user/name`; made if it does not exist.
        private: make the repository private; refused where it exists and is public.
        dry_run: say what would be uploaded, without any network.
        token: access token; None: HF_TOKEN or the saved login.
        license: identifier of the weights' licence for the card, as in `apache-2.0`; None states none.
        extra: further files by their name in the repository.

    Raises:
        ConfigError: no possible repository name, no finished run, unreadable files, a clash of names, or the token in
            one of the files.
        HubError: no token; the Hub refused it, the name or the write; the Hub cannot be reached. No error holds the
            token.
    """
    check_repo_id(repo_id)
    found = read_run(Path(run))
    files = {**found.files, **_checked_extra(extra or {}, found.files)}
    card = model_card(repo_id, found.config, found.results, license, found.version, files)
    sizes = {name: _size(content) for name, content in files.items()} | {"README.md": len(card.encode())}
    url = f"{hub_endpoint()}/{repo_id}"
    if dry_run:
        return PushResult(url, None, sizes, card)
    token = _usable_token(token, repo_id)
    _refuse_token_in(files, card, token)
    commit, removed = _upload(repo_id, files, card, private, token)
    return PushResult(url, commit, sizes, card, removed)


def read_run(run: Path) -> RunFiles:
    """Return the files of a run's folder, of its `final/`, or of a bare model folder, as they are published.

    Raises:
        ConfigError: the folder is missing, unfinished or damaged; a link among its files.
    """
    require(run.is_dir(), f"{run}: no such folder; expected a run (runs/NAME) or a model folder")
    folder = run.resolve()
    if folder.name == "final" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    if not (folder / "config.yaml").is_file():
        require(
            (folder / "config.json").is_file() and (folder / "model.safetensors").is_file(),
            f"{run}: neither a run (config.yaml and final/) nor a model (config.json and model.safetensors)",
        )
        return RunFiles(dict(_own_files(folder)), None, None, _check_model(folder))
    model = folder / "final"
    resume = f"`mmrep train --config {run / 'config.yaml'} --resume auto`"
    require(model.is_dir(), f"{run}: not finished, it has no final/; go on with {resume}")
    files: dict[str, Path | bytes] = dict(_own_files(model))
    version = _check_model(model)
    place = folder / "config.yaml"
    config = _read_config(place)
    files["config.yaml"], config = _published(place, config, lambda found: yaml.safe_dump(found, sort_keys=False))
    place, results = folder / "results.json", None
    if place.is_file():
        _regular(place)
        content = _parse(place, json.loads)
        files["results.json"], content = _published(place, content, lambda found: json.dumps(found, indent=2) + "\n")
        results = _entries(content, place)
    return RunFiles(files, config, results, version)


def _published(path: Path, content: Any, write: Callable[[Any], str]) -> tuple[Path | bytes, Any]:
    """Return a file as it is published, and its content: the file itself, unless an address in it gives access."""
    public = _without_secrets(content)
    return (path, content) if public == content else (write(public).encode(), public)


def _own_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the files that belong to a model; a folder may hold anything else, secrets included.

    Raises:
        ConfigError: one of them is a link, which may lead out of the folder, or no regular file.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch(name, known) for known in (*MODEL_FILES, *LICENCES)) and not path.is_dir():
            _regular(path)
            yield name, path


def _regular(path: Path) -> None:
    links = [each for each in (path, path.parent) if each.is_symlink()]
    require(not links, f"{links[0] if links else path}: is a link, which is not followed: copy the file itself there")
    require(path.is_file(), f"{path}: is no regular file")


def _without_secrets(value: Any) -> Any:
    """Return plain data in which addresses have no query, fragment or password: presigned URLs give access."""
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\w+://)(?:[^\s/@]*@)?([^\s?#]*)[^\s]*", r"\1\2", value)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _check_model(folder: Path) -> str:
    """The version of mmrep that made the model, after a look at config and weights."""
    from safetensors import SafetensorError, safe_open

    for name in ("config.json", "model.safetensors"):
        require((folder / name).is_file(), f"{folder}: no {name} in it")
    require(is_model_config(folder / "config.json"), f"{folder / 'config.json'}: not a model config of mmrep")
    try:
        # Opening reads the header only, and finds a file that was cut off.
        with safe_open(folder / "model.safetensors", framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder / 'model.safetensors'}: not a whole safetensors file ({error})") from None
    return str(_parse(folder / "config.json", json.loads)["mmrep"])


def _read_config(path: Path) -> dict[str, Any]:
    _regular(path)
    config = _parse(path, lambda text: read_yaml(text, str(path)))
    require(isinstance(config, dict), f"{path}: expected a mapping, got {type(config).__name__}")
    return config


def _entries(content: Any, path: Path) -> list[dict[str, Any]]:
    entries = content.get("results") if isinstance(content, dict) else None
    if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
        raise ConfigError(f"{path}: expected {{'schema': 1, 'results': [...]}}; write it again with `mmrep eval`")
    return entries


def _parse(path: Path, parser: Any) -> Any:
    """The content of a JSON or YAML file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return parser(path.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _checked_extra(extra: Mapping[str, Path], taken: Collection[str]) -> dict[str, Path | bytes]:
    for name, path in extra.items():
        parts = PurePosixPath(name).parts
        safe = bool(parts) and not name.startswith("/") and not {"..", ".", ".git"} & set(parts)
        require(safe, f"extra: {name!r} is no path inside a repository")
        require(name not in taken and name != "README.md", f"extra: {name!r} is a file of the model itself")
        require(Path(path).is_file(), f"extra: {name!r}: no file {path}")
    return {name: Path(path) for name, path in extra.items()}


def _usable_token(token: str | None, repo_id: str) -> str:
    from huggingface_hub import get_token

    found = (token or call_hub(get_token, f"upload to {repo_id}", {}, None) or "").strip()
    if not found:
        raise HubError(f"upload to {repo_id}: no access token; set HF_TOKEN or run `hf auth login`")
    if not re.fullmatch(r"[\x21-\x7e]+", found):
        raise HubError(f"upload to {repo_id}: the access token has blanks or letters that no token has; copy it again")
    return found


def _refuse_token_in(files: Mapping[str, Path | bytes], card: str, token: str) -> None:
    """Raises ConfigError where a file that would be published holds the access token."""
    secrets = [spelling.encode() for spelling in spellings(token)] + [token.encode("utf-16-le")]
    for name, content in {**files, "README.md": card.encode()}.items():
        if _size(content) <= LARGEST_TEXT:
            data = content if isinstance(content, bytes) else content.read_bytes()
            if any(secret in data for secret in secrets):
                raise ConfigError(
                    f"{name}: would hold the access token; remove it from the run, renew it, then push again"
                )


def _upload(
    repo_id: str, files: Mapping[str, Path | bytes], card: str, private: bool, token: str
) -> tuple[str, tuple[str, ...]]:
    """Makes the repository if need be and commits; returns the commit's id and the files that were removed."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    what = f"upload to {repo_id}"
    hints = {
        401: "the Hub does not accept the access token; set HF_TOKEN to a valid one or run `hf auth login` again",
        403: "this token may not write there: the name belongs to another account, or the token is for reading only",
        404: "no such account or repository, or this token may not see it",
        409: "the name is taken, or somebody else writes to it at this moment",
    }
    api = HfApi(endpoint=hub_endpoint(), token=token, library_name="mmrep", library_version=__version__)

    def prepare() -> tuple[bool, list[str]]:
        # None leaves the choice to the account's or organisation's default, which may be private.
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        info = api.model_info(repo_id)
        return bool(info.private), [sibling.rfilename for sibling in info.siblings or []]

    def commit(removed: tuple[str, ...]) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd("README.md", card.encode()),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in removed),
        ]
        return api.create_commit(repo_id, operations, commit_message=MESSAGE).oid

    with _plain_uploads():
        is_private, present = call_hub(prepare, what, hints, token)
        if private and not is_private:
            raise HubError(f"{what}: it exists and is public, nothing was uploaded; make it private or take a new name")
        written = {*files, "README.md"}
        old = tuple(name for name in present if name not in written and any(fnmatch(name, own) for own in OWN_FILES))
        oid = call_hub(lambda: commit(old), what, hints, token)
        arrived = call_hub(lambda: api.list_repo_files(repo_id, revision=oid), what, hints, token)
    # The client leaves out, without a word, what the repository's own .gitignore names.
    lost = sorted(written - set(arrived))
    if lost:
        raise HubError(f"{what}: {', '.join(lost)} did not arrive; does the repository's .gitignore name them?")
    return oid, old


@contextmanager
def _plain_uploads() -> Iterator[None]:
    """Switches off the Xet transfer, which needs further servers and has no fallback where one is not to be had."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
