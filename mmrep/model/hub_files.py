"""Downloads of models from the Hub, and errors of the Hub in one line."""

import base64
import html
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from mmrep.config.checks import ConfigError, MmrepError, require

T = TypeVar("T")

MODEL_FILES: tuple[str, ...] = ("config.json", "model.safetensors", "tokenizer/*")
"""Files of a model of mmrep."""

OPEN_CLIP_FILES: tuple[str, ...] = ("open_clip_config.json", "open_clip_model.safetensors")
"""Files of a model of open_clip. Pickled weights are never downloaded."""

LONGEST_MESSAGE = 500


class HubError(MmrepError):
    """An error of the Hub, or no connection to it: one line that never shows the access token. Exit status 1."""


def check_repo_id(repo_id: str) -> None:
    """Raise ConfigError unless `repo_id` is a possible `user/name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    require(repo_id.count("/") == 1, f"repository {repo_id!r}: expected user/name, as in jane/clip-ggem")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"repository {repo_id!r}: {_one_line(str(error))}") from None


def hub_endpoint() -> str:
    """Return the Hub's address: the present value of HF_ENDPOINT, else the client's default."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def call_hub(call: Callable[[], T], what: str, hints: Mapping[int, str], token: str | None) -> T:
    """Run `call`, and turn any exception of the Hub's client into a HubError of one line.

    Args:
        call: calls of the client.
        what: start of the error's line: what is being done.
        hints: meaning of HTTP statuses here, and what to do about them.
        token: the access token in use, which is cut out of every message.

    Raises:
        HubError: the Hub answered with an error, cannot be reached, or the client failed otherwise.
    """
    try:
        return call()
    except HubError:
        raise
    except Exception as error:
        problem = HubError(_scrubbed(f"{what}: {_reason(error, hints)}", token))
    # Raised outside the handler, so that it is not chained to the client's exception, which holds the token.
    raise problem


def is_model_config(path: Path) -> bool:
    """Return whether a config.json is mmrep's. Many other libraries use the same name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "mmrep" in content and isinstance(content.get("model"), dict)


def fetch_model(repo_id: str, revision: str | None = None) -> Path:
    """Download a model from the Hub if needed, and return its folder. If the Hub cannot be reached, use the cache.

    A model of mmrep has `MODEL_FILES`, a model of open_clip `OPEN_CLIP_FILES`; nothing else is downloaded. The cache is
    in MMREP_CACHE if that is set, else that of the Hub's client.

    Args:
        repo_id: `user/name`.
        revision: branch, tag or commit; by default main.

    Raises:
        ConfigError: an impossible repository name.
        HubError: no such repository or revision, no access, no network and no cached copy, or no model in it.
    """
    from huggingface_hub import get_token, snapshot_download

    check_repo_id(repo_id)
    cache = Path(os.environ["MMREP_CACHE"]) / "hub" if os.environ.get("MMREP_CACHE") else None
    what = f"download of {repo_id}" + (f", revision {revision}" if revision else "")
    token = call_hub(get_token, what, {}, None)
    absent = "no such repository, or it is private and needs a token that may read it (HF_TOKEN, or `hf auth login`)"
    hints = {
        # Without a token the Hub answers 401 for a missing repository, so that private names cannot be guessed.
        401: "the Hub does not accept the access token; set HF_TOKEN or run `hf auth login` again" if token else absent,
        403: "this token may not read the repository; ask its owner for access",
        404: absent if revision is None else f"no such revision, or {absent}",
    }

    def download(commit: str | None, patterns: Sequence[str]) -> Path:
        found = snapshot_download(
            repo_id,
            revision=commit,
            cache_dir=cache,
            endpoint=hub_endpoint(),
            token=token or False,
            allow_patterns=list(patterns),
        )
        return Path(found)

    folder = call_hub(lambda: download(revision, (MODEL_FILES[0], OPEN_CLIP_FILES[0])), what, hints, token)
    # The name of a snapshot's folder is its commit, so that both downloads are of the same commit.
    if is_model_config(folder / MODEL_FILES[0]):
        files = MODEL_FILES
    elif (folder / OPEN_CLIP_FILES[0]).is_file():
        files = OPEN_CLIP_FILES
    else:
        raise HubError(f"{what}: neither a config.json of mmrep nor an {OPEN_CLIP_FILES[0]} in it, so no model to load")
    call_hub(lambda: download(folder.name, files), what, hints, token)
    if not (folder / files[1]).is_file():
        raise HubError(f"{what}: no {files[1]} in it (pickled weights are never downloaded)")
    return folder


def _reason(error: Exception, hints: Mapping[int, str]) -> str:
    """Return what happened and what to do, from the exception or one that caused it."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    chain = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return "offline mode is on; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    for cause in chain:
        response = getattr(cause, "response", None)
        if response is not None:
            said = getattr(cause, "server_message", None) or response.reason_phrase
            return f"{hints.get(response.status_code, 'the Hub refused')} ({response.status_code}: {said})"
    for cause in chain:
        if isinstance(cause, HTTPError):
            return f"cannot reach {hub_endpoint()} ({type(cause).__name__}: {cause}); check the network and HF_ENDPOINT"
    root = f" ({type(chain[-1]).__name__}: {chain[-1]})" if len(chain) > 1 else ""
    return f"{type(error).__name__}: {error}{root}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception, the one that it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(text: str) -> str:
    """Return the text on one line of at most LONGEST_MESSAGE characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def _scrubbed(text: str, token: str | None) -> str:
    """Return the text on one line, without the token in any spelling."""
    for spelling in spellings(token) if token else ():
        text = text.replace(spelling, "<token>")
    return _one_line(text)


def spellings(secret: str) -> list[str]:
    """Return the forms that a secret may have in a text: as it is, percent-encoded, HTML, hexadecimal, base64.

    In base64 a secret has three forms, which depend on its offset in the encoded bytes (`user:secret`, for instance).
    The part of each that does not depend on the neighbouring bytes is returned.
    """
    data = secret.encode()
    found = [secret, quote(secret, safe=""), html.escape(secret), data.hex(), data.hex().upper()]
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(bytes(offset) + data).decode().rstrip("=")
            # Cut the characters at both ends that hold bits of a neighbour.
            found.append(whole[-(-8 * offset // 6) : 8 * (offset + len(data)) // 6])
    return sorted(set(found), key=len, reverse=True)
