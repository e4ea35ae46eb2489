"""Model files from the Hub, and what goes wrong between us and the Hub said in one line."""

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
"""What a model of mmrep is made of."""

OPEN_CLIP_FILES: tuple[str, ...] = ("open_clip_config.json", "open_clip_model.safetensors")
"""What a model of open_clip is made of, but for pickled weights, which are never downloaded."""

LONGEST_MESSAGE = 500


class HubError(MmrepError):
    """The Hub refused, or cannot be reached: one line that never holds the access token. Exit status 1."""


def check_repo_id(repo_id: str) -> None:
    """Raises ConfigError unless `repo_id` is a possible `user/name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    require(repo_id.count("/") == 1, f"repository {repo_id!r}: expected user/name, as in jane/clip-ggem")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"repository {repo_id!r}: {_one_line(str(error))}") from None


def hub_endpoint() -> str:
    """The Hub's address: HF_ENDPOINT as it is now, else the client's default."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def call_hub(call: Callable[[], T], what: str, hints: Mapping[int, str], token: str | None) -> T:
    """Runs `call`; whatever the Hub's client raises comes out as a HubError of one line.

    Args:
        call: the calls of the client.
        what: what is being done, the start of the error's line.
        hints: what an HTTP status means here and what to do about it.
        token: the access token in use; it is cut out of every message.

    Raises:
        HubError: the Hub answered with an error, cannot be reached, or the client failed otherwise.
    """
    try:
        return call()
    except HubError:
        raise
    except Exception as error:
        problem = HubError(_scrubbed(f"{what}: {_reason(error, hints)}", token))
    # Raised outside the handler: the client's exceptions carry the request and with it the token, so none is chained.
    raise problem


def is_model_config(path: Path) -> bool:
    """Whether a config.json is mmrep's, and not one of the many other libraries' that use the name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "mmrep" in content and isinstance(content.get("model"), dict)


def fetch_model(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a model from the Hub; downloaded once, and read from the cache where the Hub cannot be reached.

    A model of mmrep comes with `MODEL_FILES`, one of open_clip with `OPEN_CLIP_FILES`; nothing else is downloaded. The
    cache is the Hub client's own, or below MMREP_CACHE where that is set.

    Args:
        repo_id: `user/name`.
        revision: branch, tag or commit; None: main.

    Raises:
        ConfigError: `repo_id` is not a possible name.
        HubError: no such repository or revision, no access, no network and no cached copy, or no model in it.
    """
    from huggingface_hub import get_token, snapshot_download

    check_repo_id(repo_id)
    cache = Path(os.environ["MMREP_CACHE"]) / "hub" if os.environ.get("MMREP_CACHE") else None
    what = f"download of {repo_id}" + (f", revision {revision}" if revision else "")
    token = call_hub(get_token, what, {}, None)
    absent = "no such repository, or it is private and needs a token that may read it (HF_TOKEN, or `hf auth login`)"
    hints = {
        # Without a token the Hub answers 401 for what does not exist, so that private names cannot be guessed.
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
    # A snapshot's folder is named by its commit: both downloads are of the same one.
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
    """What happened and what to do, from the exception or one that caused it."""
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
    """The exception, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(text: str) -> str:
    """The text on one line of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def _scrubbed(text: str, token: str | None) -> str:
    """Return the text on one line, without the token in any spelling."""
    for spelling in spellings(token) if token else ():
        text = text.replace(spelling, "<token>")
    return _one_line(text)


def spellings(secret: str) -> list[str]:
    """Return the ways in which a secret may stand in a text: as it is, percent-encoded, as HTML, hexadecimal, base64.

    In base64 a secret looks another way at each of three offsets (`user:secret`, for instance); of each, what does not
    depend on its neighbours is returned.
    """
    data = secret.encode()
    found = [secret, quote(secret, safe=""), html.escape(secret), data.hex(), data.hex().upper()]
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(bytes(offset) + data).decode().rstrip("=")
            # Characters of six bits that hold bits of a neighbour, at both ends.
            found.append(whole[-(-8 * offset // 6) : 8 * (offset + len(data)) // 6])
    return sorted(set(found), key=len, reverse=True)
