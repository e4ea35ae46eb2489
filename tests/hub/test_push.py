"""Uploads and downloads with the real client against a Hub on the loopback."""

import json
import logging
import socket
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import yaml
from fake_hub import FakeHub, Handler
from huggingface_hub import close_session, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from safetensors.numpy import save_file

from mmrep.config.checks import ConfigError
from mmrep.hub.push import push
from mmrep.model.hub_files import HubError, call_hub, fetch_model

# The Hub's client hands an open file to its HTTP library in a way that the latter will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_AbCdEf0123456789secret"
CONFIG = {
    "output_dir": "runs/ggem",
    "seed": 3,
    "model": {"name": None, "pool": {"name": "ggem", "args": {"groups": 4}}, "image": {"trunk": "vit_tiny"}},
    "data": {"train": [{"shards": "train/{0..9}.tar", "caption": "txt"}]},
    "loss": {"kind": "infonce", "duplicates": "auto"},
    "optim": {"lr": 5e-4},
    "training": {"steps": 100, "global_batch": 64, "precision": "bf16"},
}
RESULTS = [
    {"model": "m", "dataset": "cifar10", "task": "zeroshot", "n": 10, "metrics": {"acc1": 0.5}, "chance": {"acc1": 0.1}}
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub(tokens={TOKEN: "jane"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        disable_progress_bars()
        yield server
        enable_progress_bars()
        close_session()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "ggem"
    make_model(folder / "final", seed=0)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "results.json").write_text(json.dumps({"schema": 1, "results": RESULTS}))
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.safetensors").write_bytes(b"no part of the model")
    return folder


def make_model(folder: Path, seed: int) -> None:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 1, "mmrep": "0.1.0", "model": {"pool": "ggem"}}))
    (folder / "tokenizer" / "vocab.txt").write_text("a\nphoto\n")
    weights = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    save_file({"trunk.weight": weights}, folder / "model.safetensors")


def message_of(error: BaseException) -> str:
    """The message, after a look that it is one line and that nothing about the error shows the token."""
    text = str(error)
    assert "\n" not in text
    assert TOKEN not in "".join(traceback.format_exception(error)) + repr(error)
    assert error.__cause__ is None and error.__context__ is None
    return text


def test_push_is_one_commit_with_every_byte(hub: FakeHub, run: Path) -> None:
    result = push(run, "jane/ggem")
    repo = hub.repos["jane/ggem"]
    assert len(repo.commits) == 2, "the Hub's own first commit and ours"
    assert result.commit == repo.commits[-1][0]
    assert result.url == f"{hub.url}/jane/ggem"
    uploaded = {name: file.content for name, file in repo.files.items() if name != ".gitattributes"}
    expected = {name: (run / "final" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    expected["tokenizer/vocab.txt"] = (run / "final" / "tokenizer" / "vocab.txt").read_bytes()
    expected |= {name: (run / name).read_bytes() for name in ("config.yaml", "results.json")}
    assert uploaded == expected | {"README.md": result.card.encode()}
    assert result.files == {name: len(content) for name, content in uploaded.items()}
    assert {name for name, file in repo.files.items() if file.lfs} == {"model.safetensors"}
    assert hub.paths("PUT") == [f"/storage/{repo.files['model.safetensors'].sha256}"]
    assert sum("/commit/" in path for path in hub.paths("POST")) == 1


def test_fetch_brings_back_the_model_and_nothing_else(
    hub: FakeHub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, "jane/ggem")
    folder = fetch_model("jane/ggem")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    original = {name: (run / "final" / name).read_bytes() for name in found}
    assert found == original
    assert set(found) == {"config.json", "model.safetensors", "tokenizer/vocab.txt"}
    assert folder.is_relative_to(tmp_path / "cache")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert fetch_model("jane/ggem") == folder, "read from the cache where the Hub cannot be reached"


def test_fetch_takes_the_revision_asked_for(hub: FakeHub, run: Path) -> None:
    first = push(run, "jane/ggem").commit
    weights = (run / "final" / "model.safetensors").read_bytes()
    save_file({"trunk.weight": np.ones((8, 8), np.float32)}, run / "final" / "model.safetensors")
    second = push(run, "jane/ggem").commit
    assert first != second
    assert (fetch_model("jane/ggem", revision=first) / "model.safetensors").read_bytes() == weights
    assert (fetch_model("jane/ggem") / "model.safetensors").read_bytes() != weights


@pytest.mark.parametrize("private", [True, False])
def test_private_reaches_the_hub(hub: FakeHub, run: Path, private: bool) -> None:
    push(run, "jane/ggem", private=private)
    assert hub.repos["jane/ggem"].private is private


def test_private_never_goes_into_a_public_repository(hub: FakeHub, run: Path) -> None:
    repo = hub.make("jane/ggem")
    with pytest.raises(HubError, match="is public, nothing was uploaded") as caught:
        push(run, "jane/ggem", private=True)
    message_of(caught.value)
    assert len(repo.commits) == 1 and not hub.storage


def test_dry_run_touches_no_network(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(run, "jane/ggem", dry_run=True)
    assert hub.requests == []
    assert result.commit is None
    assert result.files["model.safetensors"] == (run / "final" / "model.safetensors").stat().st_size
    assert set(result.files) == {
        "README.md", "config.json", "config.yaml", "model.safetensors", "results.json", "tokenizer/vocab.txt",
    }  # fmt: skip
    assert "ggem" in result.card


def test_token_goes_only_into_the_header(hub: FakeHub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    result = push(run, "jane/ggem", token=TOKEN)
    assert TOKEN not in caplog.text + repr(result)
    for _, path, headers, body in hub.requests:
        assert TOKEN not in path and TOKEN.encode() not in body
        assert {key for key, value in headers.items() if TOKEN in value} <= {"authorization", "Authorization"}
    assert all(TOKEN.encode() not in file.content for file in hub.repos["jane/ggem"].files.values())
    assert all(TOKEN not in message for _, message, _ in hub.repos["jane/ggem"].commits)


def test_wrong_token(hub: FakeHub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub.tokens.clear()
    with pytest.raises(HubError, match=r"does not accept the access token.*HF_TOKEN.*401") as caught:
        push(run, "jane/ggem")
    message_of(caught.value)
    assert TOKEN not in caplog.text
    assert hub.repos == {}


def test_token_that_the_server_echoes_is_cut_out(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def echo(self: Handler, body: bytes) -> None:
        self.error(418, f"refused: {self.headers['Authorization']}")

    monkeypatch.setattr(Handler, "create", echo)
    with pytest.raises(HubError, match="refused: Bearer <token>") as caught:
        push(run, "jane/ggem")
    message_of(caught.value)


@pytest.mark.parametrize("token", ["hf_two words", "hf_é"])
def test_malformed_token_is_not_shown(hub: FakeHub, run: Path, token: str) -> None:
    with pytest.raises(HubError, match="access token has blanks") as caught:
        push(run, "jane/ggem", token=token)
    assert token not in message_of(caught.value)
    assert hub.requests == []


def test_no_token(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="no access token; set HF_TOKEN") as caught:
        push(run, "jane/ggem")
    message_of(caught.value)
    assert hub.requests == []


def test_name_of_another_account(hub: FakeHub, run: Path) -> None:
    repo = hub.make("bob/ggem")
    with pytest.raises(HubError, match=r"bob/ggem: this token may not write there.*403") as caught:
        push(run, "bob/ggem")
    message_of(caught.value)
    assert len(repo.commits) == 1 and not hub.storage


def test_another_account_without_the_repository(hub: FakeHub, run: Path) -> None:
    with pytest.raises(HubError, match=r"may not write there.*403: .*namespace \"bob\"") as caught:
        push(run, "bob/new")
    message_of(caught.value)
    assert hub.repos == {}


def test_token_for_reading_only(hub: FakeHub, run: Path) -> None:
    hub.readers.add(TOKEN)
    with pytest.raises(HubError, match="for reading only") as caught:
        push(run, "jane/ggem")
    message_of(caught.value)


@pytest.mark.parametrize(
    ("route", "status", "says"), [("commit", 409, "name is taken"), ("commit", 507, "refused .507")]
)
def test_refused_commit_leaves_the_repository_as_it_was(
    hub: FakeHub, run: Path, route: str, status: int, says: str
) -> None:
    hub.refuse = {route: status}
    with pytest.raises(HubError, match=says) as caught:
        push(run, "jane/ggem")
    message_of(caught.value)
    assert set(hub.repos["jane/ggem"].files) == {".gitattributes"}


def test_failed_upload_of_the_weights_commits_nothing(hub: FakeHub, run: Path) -> None:
    hub.refuse = {"store": 403}
    with pytest.raises(HubError, match="may not write there"):
        push(run, "jane/ggem")
    assert set(hub.repos["jane/ggem"].files) == {".gitattributes"}


def test_second_push_replaces_the_first(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "open_clip_config.json").write_text("{}")
    push(run, "jane/ggem", extra=tmp_path / "export")
    hub.repos["jane/ggem"].files["notes.md"] = hub.repos["jane/ggem"].files["README.md"]
    bare = tmp_path / "other"
    make_model(bare, seed=1)
    result = push(bare, "jane/ggem")
    repo = hub.repos["jane/ggem"]
    assert len(repo.commits) == 3
    assert set(result.removed) == {"config.yaml", "results.json", "open_clip_config.json"}
    assert set(repo.files) == set(result.files) | {".gitattributes", "notes.md"}
    assert repo.files["model.safetensors"].content == (bare / "model.safetensors").read_bytes()


def test_push_of_the_same_again_makes_no_commit(hub: FakeHub, run: Path) -> None:
    first = push(run, "jane/ggem")
    again = push(run, "jane/ggem")
    assert again.commit == first.commit
    assert len(hub.repos["jane/ggem"].commits) == 2


def test_file_that_the_hub_ignores_is_reported(hub: FakeHub, run: Path) -> None:
    hub.ignored.add("tokenizer/vocab.txt")
    with pytest.raises(HubError, match=r"tokenizer/vocab.txt did not arrive"):
        push(run, "jane/ggem")


def test_extra_files_travel_in_the_same_commit(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "open_clip_config.json").write_text("{}")
    save_file({"visual.weight": np.zeros(4, np.float32)}, export / "open_clip_model.safetensors")
    result = push(run, "jane/ggem", extra=export)
    repo = hub.repos["jane/ggem"]
    assert len(repo.commits) == 2
    for path in export.iterdir():
        assert repo.files[path.name].content == path.read_bytes()
    assert "open_clip.create_model_and_transforms" in result.card


def test_extra_file_never_replaces_one_of_the_model(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="config.json is a file of the model itself"):
        push(run, "jane/ggem", dry_run=True, extra=tmp_path / "export")


def test_final_folder_stands_for_its_run(hub: FakeHub, run: Path) -> None:
    assert push(run / "final", "jane/ggem", dry_run=True) == push(run, "jane/ggem", dry_run=True)


def test_bare_model_folder_gives_nothing_else_away(hub: FakeHub, tmp_path: Path) -> None:
    make_model(tmp_path / "model", seed=0)
    (tmp_path / "model" / ".env").write_text("PASSWORD=1")
    (tmp_path / "model" / "diary.txt").write_text("private")
    result = push(tmp_path / "model", "jane/bare")
    assert set(result.files) == {"README.md", "config.json", "model.safetensors", "tokenizer/vocab.txt"}
    assert set(hub.repos["jane/bare"].files) == {*result.files, ".gitattributes"}
    assert "recipe is not recorded" in result.card and "No results are recorded" in result.card


def test_unfinished_run(hub: FakeHub, run: Path) -> None:
    (run / "final").rename(run / "elsewhere")
    with pytest.raises(
        ConfigError, match=r"ggem: not finished, it has no final/; go on with .*--resume auto"
    ) as caught:
        push(run, "jane/ggem")
    message_of(caught.value)
    assert hub.requests == []


def test_missing_run(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        push(tmp_path / "nowhere", "jane/ggem")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither a run .* nor a model"):
        push(tmp_path / "empty", "jane/ggem")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("final/model.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
        ("final/config.json", b"{", "not a model config of mmrep"),
        ("final/config.json", b'{"model_type": "clip"}', "not a model config of mmrep"),
        ("config.yaml", b"a: [", "config.yaml: not YAML .line 1"),
        ("config.yaml", b"- a", "expected a mapping, got list"),
        ("results.json", b'{"schema": 1}', r"results.json: expected .*'results'"),
        ("results.json", b"\xff", "cannot be read"),
    ],
)
def test_damaged_file(hub: FakeHub, run: Path, name: str, content: bytes, says: str) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        push(run, "jane/ggem")
    assert "\n" not in str(caught.value) and name.split("/")[-1] in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("spell", [
    str, lambda token: token.encode().hex(), lambda token: b64encode(f"jane:{token}".encode()).decode(),
    lambda token: b64encode(f"x{token}".encode()).decode(), lambda token: b64encode(token.encode()).decode(),
])  # fmt: skip
def test_token_in_a_file_is_never_published(hub: FakeHub, run: Path, spell: Callable[[str], str]) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "output_dir": f"runs/{spell(TOKEN)}"}))
    with pytest.raises(ConfigError, match=r"(config.yaml|README.md): would hold the access token") as caught:
        push(run, "jane/ggem")
    message_of(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    "spell", [str, lambda token: quote(f"{token}&x", safe=""), lambda token: b64encode(b"u:" + token.encode()).decode()]
)
def test_no_error_shows_the_token_in_any_spelling(spell: Callable[[str], str]) -> None:
    secret = "hf_A+/b c&d"

    def fail() -> None:
        raise RuntimeError(f"GET https://example/?auth={spell(secret)} failed")

    with pytest.raises(HubError, match="<token>") as caught:
        call_hub(fail, "x", {}, secret)
    assert spell(secret)[3:9] not in str(caught.value)


def test_addresses_are_published_without_what_gives_access(hub: FakeHub, run: Path) -> None:
    address = "https://bucket.example/a/{0..9}.tar"
    source = {
        "shards": [f"{address}?X-Amz-Signature=abc&X-Amz-Expires=9", "s3://jane:pw@bucket/b.tar#x"],
        "caption": "txt",
    }
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": {"train": [source]}}))
    card = push(run, "jane/ggem").card
    published = hub.repos["jane/ggem"].files["config.yaml"].content.decode()
    for text in (card, published):
        assert address in text and "s3://bucket/b.tar" in text
        assert "Signature" not in text and "pw@" not in text and "#x" not in text


def test_links_are_not_followed(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("private")
    (run / "final" / "notes.txt").symlink_to(secret)  # no file of a model: stays here
    push(run, "jane/ggem")
    assert "notes.txt" not in hub.repos["jane/ggem"].files
    (run / "final" / "LICENSE").symlink_to(secret)
    with pytest.raises(ConfigError, match=r"final/LICENSE: is a link, which is not followed"):
        push(run, "jane/ggem")
    (run / "final" / "LICENSE").unlink()
    (run / "final" / "LICENSE").write_text("Apache")
    push(run, "jane/ggem")
    assert hub.repos["jane/ggem"].files["LICENSE"].content == b"Apache"


@pytest.mark.parametrize("repo_id", ["ggem", "a/b/c", "jane/", "jane/ggem--x", "jane/gg em", "jane/ggem.git", ""])
def test_impossible_repository_name(hub: FakeHub, run: Path, repo_id: str) -> None:
    for call in (lambda: push(run, repo_id), lambda: fetch_model(repo_id)):
        with pytest.raises(ConfigError, match="repository '") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert hub.requests == []


def test_card_that_the_hub_refuses(hub: FakeHub, run: Path) -> None:
    with pytest.raises(HubError, match=r"license.* must be one of"):
        push(run, "jane/ggem", license="not-a-licence")
    assert set(hub.repos["jane/ggem"].files) == {".gitattributes"}


def test_hub_out_of_reach(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for call in (lambda: push(run, "jane/ggem"), lambda: fetch_model("jane/ggem")):
        with pytest.raises(HubError, match=r"cannot reach http://127.0.0.1:\d+ .*check the network") as caught:
            call()
        message_of(caught.value)


def test_offline_mode(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for call in (lambda: push(run, "jane/ggem"), lambda: fetch_model("jane/ggem")):
        with pytest.raises(HubError, match="offline mode is on; unset HF_HUB_OFFLINE") as caught:
            call()
        message_of(caught.value)


def test_fetch_without_access(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, "jane/ggem", private=True)
    monkeypatch.delenv("HF_TOKEN")
    for repo_id in ("jane/ggem", "jane/none"):
        with pytest.raises(HubError, match=f"download of {repo_id}: no such repository, or it is private") as caught:
            fetch_model(repo_id)
        message_of(caught.value)


def test_fetch_of_an_unknown_revision(hub: FakeHub, run: Path) -> None:
    push(run, "jane/ggem")
    with pytest.raises(HubError, match="revision v9: no such revision"):
        fetch_model("jane/ggem", revision="v9")


def test_fetch_with_a_wrong_token(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, "jane/ggem")
    hub.tokens.clear()
    with pytest.raises(HubError, match="does not accept the access token") as caught:
        fetch_model("jane/ggem")
    message_of(caught.value)


def test_fetch_takes_a_model_of_open_clip(hub: FakeHub) -> None:
    files = {"open_clip_config.json": b"{}", "open_clip_model.safetensors": b"weights", "pytorch_model.bin": b"pickle"}
    hub.make("jane/clip", {**files, "config.json": b'{"model_type": "clip"}', "model.safetensors": b"another layout"})
    folder = fetch_model("jane/clip")
    assert {path.name for path in folder.iterdir()} == {*list(files)[:2], "config.json"}
    assert (folder / "open_clip_model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README.md": b"# data"}, "neither a config.json of mmrep nor an open_clip_config.json"),
        ({"config.json": b"[1"}, "neither a config.json of mmrep"),
        ({"config.json": b'{"mmrep": "0.1.0", "model": {}}'}, r"no model\.safetensors in it"),
        ({"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"x"}, "pickled weights are never downloaded"),
    ],
)
def test_fetch_of_something_else(hub: FakeHub, files: dict[str, bytes], says: str) -> None:
    hub.make("jane/else", files)
    with pytest.raises(HubError, match=says) as caught:
        fetch_model("jane/else")
    message_of(caught.value)
    assert not any("pytorch_model" in path for path in hub.paths("GET"))


def test_upload_leaves_the_transfer_setting_as_it_was(hub: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    push(run, "jane/ggem")
    assert constants.HF_HUB_DISABLE_XET is False
    assert not any("xet" in path for method in ("GET", "POST") for path in hub.paths(method))


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
