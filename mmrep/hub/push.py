"""Upload of a finished run to the Hub: model, config, results and card in one commit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
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
"""Files that describe one model. An upload removes those of an earlier upload that it does not replace: a folder with
the files of two models loads without an error and gives wrong embeddings."""

LICENCES = ("LICENSE", "LICENSE.*", "LICENCE", "LICENCE.*", "NOTICE")
"""Further files of `final/` that are uploaded."""

Files = dict[str, Path | bytes]
"""Path of every file by its name in the repository, or its content where that is changed for publication."""

LARGEST_TEXT = 10_000_000
"""Larger files are not searched for the access token."""


class PushResult(NamedTuple):
    """The outcome of an upload or of a dry run.

    Attributes:
        url: address of the repository.
        commit: id of the commit; None in a dry run.
        files: size in bytes of every file, by its name in the repository.
        card: text of README.md.
        removed: files of an earlier upload that were removed.
    """

    url: str
    commit: str | None
    files: dict[str, int]
    card: str
    removed: tuple[str, ...] = ()


def push(
    run: str | Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    license: str | None = None,
    extra: Path | None = None,
) -> PushResult:
    """Upload a run to the Hub in one commit: all of it arrives, or nothing.

    Args:
        run: a run's folder, its `final/`, or a bare model folder (config.json and model.safetensors).
        repo_id: `user/name`; the repository is made if it does not exist.
        private: make the repository private. An existing public repository is an error.
        dry_run: return what would be uploaded, without using the network.
        token: access token; by default HF_TOKEN or the saved login.
        license: identifier of the weights' licence for the card, such as `apache-2.0`.
        extra: folder of further files, such as an open_clip export.

    Raises:
        ConfigError: an impossible repository name, no finished run, unreadable files, a clash of names, or the token in
            one of the files.
        HubError: no token, no access, or no connection. No error shows the token.
    """
    check_repo_id(repo_id)
    files, config, results, version = _read_run(Path(run))
    for path in sorted(extra.iterdir()) if extra else ():
        require(path.name not in files, f"{path}: {path.name} is a file of the model itself")
        files[path.name] = path
    card = model_card(repo_id, config, results, license, version, files)
    sizes = {name: _size(content) for name, content in files.items()} | {"README.md": len(card.encode())}
    url = f"{hub_endpoint()}/{repo_id}"
    if dry_run:
        return PushResult(url, None, sizes, card)
    token = _usable_token(token, repo_id)
    files["README.md"] = card.encode()
    _refuse_token_in(files, token)
    commit, removed = _upload(repo_id, files, private, token)
    return PushResult(url, commit, sizes, card, removed)


def _read_run(run: Path) -> tuple[Files, dict[str, Any] | None, list[dict[str, Any]] | None, str]:
    """Read a run's folder, its `final/`, or a bare model folder, and leave out what must not be published.

    Returns:
        The files; the resolved config (None for a bare model folder); the entries of results.json (None if there is
        none); the version of mmrep that made the model.

    Raises:
        ConfigError: the folder is missing, unfinished or damaged, or one of its files is a link.
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
        return _model_files(folder), None, None, _check_model(folder)
    model = folder / "final"
    resume = f"`mmrep train --config {run / 'config.yaml'} --resume auto`"
    require(model.is_dir(), f"{run}: not finished, it has no final/; go on with {resume}")
    files, version = _model_files(model), _check_model(model)
    place = folder / "config.yaml"
    files[place.name], config = _published(
        place, lambda text: read_yaml(text, str(place)), lambda content: yaml.safe_dump(content, sort_keys=False)
    )
    require(isinstance(config, dict), f"{place}: expected a mapping, got {type(config).__name__}")
    place, results = folder / "results.json", None
    if place.is_file():
        files[place.name], content = _published(place, json.loads, lambda content: json.dumps(content, indent=2))
        results = content.get("results") if isinstance(content, dict) else None
        require(
            isinstance(results, list) and all(isinstance(entry, dict) for entry in results),
            f"{place}: expected {{'schema': 1, 'results': [...]}}; write it again with `mmrep eval`",
        )
    return files, config, results, version


def _model_files(folder: Path) -> Files:
    """Return the files that belong to a model, by name. The folder may hold anything else, secrets included.

    Raises:
        ConfigError: one of them is a link, which may lead out of the folder, or not a regular file.
    """
    from huggingface_hub.utils import filter_repo_objects

    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    names = filter_repo_objects(paths, allow_patterns=[*MODEL_FILES, *LICENCES])
    return {name: _regular(paths[name]) for name in names}


def _regular(path: Path) -> Path:
    links = [each for each in (path, path.parent) if each.is_symlink()]
    require(not links, f"{links[0] if links else path}: is a link, which is not followed: copy the file itself there")
    require(path.is_file(), f"{path}: is not a regular file")
    return path


def _check_model(folder: Path) -> str:
    """Check a model's config and weights, and return the version of mmrep that made them."""
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
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["mmrep"])


def _published(path: Path, read: Callable[[str], Any], write: Callable[[Any], str]) -> tuple[Path | bytes, Any]:
    """Return a file as it is published, and its content. It is the file itself, unless an address in it gives access.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        content = read(_regular(path).read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    public = _without_secrets(content)
    return (path if public == content else write(public).encode()), public


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


def _usable_token(token: str | None, repo_id: str) -> str:
    from huggingface_hub import get_token

    found = (token or call_hub(get_token, f"upload to {repo_id}", {}, None) or "").strip()
    if not found:
        raise HubError(f"upload to {repo_id}: no access token; set HF_TOKEN or run `hf auth login`")
    if not re.fullmatch(r"[\x21-\x7e]+", found):
        raise HubError(f"upload to {repo_id}: the access token has blanks or letters that no token has; copy it again")
    return found


def _refuse_token_in(files: Files, token: str) -> None:
    """Raise ConfigError if a file that would be published holds the access token."""
    secrets = [spelling.encode() for spelling in spellings(token)] + [token.encode("utf-16-le")]
    for name, content in files.items():
        if _size(content) <= LARGEST_TEXT:
            data = content if isinstance(content, bytes) else content.read_bytes()
            if any(secret in data for secret in secrets):
                raise ConfigError(
                    f"{name}: would hold the access token; remove it from the run, renew it, then push again"
                )


def _upload(repo_id: str, files: Files, private: bool, token: str) -> tuple[str, tuple[str, ...]]:
    """Make the repository if need be and commit. Return the commit's id and the files that were removed."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
    from huggingface_hub.utils import filter_repo_objects

    what = f"upload to {repo_id}"
    hints = {
        401: "the Hub does not accept the access token; set HF_TOKEN to a valid one or run `hf auth login` again",
        403: "this token may not write there: the name belongs to another account, or the token is for reading only",
        404: "no such account or repository, or this token may not see it",
        409: "the name is taken, or somebody else writes to it at this moment",
    }
    api = HfApi(endpoint=hub_endpoint(), token=token, library_name="mmrep", library_version=__version__)

    def upload() -> tuple[str, tuple[str, ...]]:
        # None leaves the choice to the default of the account or organisation, which may be private.
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        info = api.model_info(repo_id)
        if private and not info.private:
            raise HubError(f"{what}: it exists and is public, nothing was uploaded; make it private or take a new name")
        present = [sibling.rfilename for sibling in info.siblings or []]
        removed = [name for name in filter_repo_objects(present, allow_patterns=[*OWN_FILES]) if name not in files]
        # `upload_folder` would need fewer lines, but is several commits where the Xet transfer is on.
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in removed),
        ]
        oid = api.create_commit(repo_id, operations, commit_message=f"Upload model with mmrep {__version__}").oid
        # The client silently leaves out what the repository's own .gitignore names.
        lost = sorted({*files} - {*api.list_repo_files(repo_id, revision=oid)})
        if lost:
            raise HubError(f"{what}: {', '.join(lost)} did not arrive; does the repository's .gitignore name them?")
        return oid, tuple(removed)

    # The Xet transfer needs further servers and has no fallback if they cannot be reached.
    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        return call_hub(upload, what, hints, token)
    finally:
        constants.HF_HUB_DISABLE_XET = before
