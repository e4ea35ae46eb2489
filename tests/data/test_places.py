"""Short names of the embedded sets and the cache's root."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.data import scenes
from mmrep.data.paths import resolve_place


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MMREP_CACHE", "~/elsewhere")
    assert cache_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("MMREP_CACHE", "")
    assert cache_root() == tmp_path / ".cache/mmrep"
    monkeypatch.delenv("MMREP_CACHE")
    assert cache_root() == tmp_path / ".cache/mmrep"


@pytest.mark.parametrize("part", ["train", "classes", "captions"])
def test_scenes_become_folders_of_the_default_set(part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scenes, "default_scenes", lambda: tmp_path)
    assert resolve_place(f"scenes:{part}") == str(tmp_path / part)


@pytest.mark.parametrize("path", ["train/{0..9}.tar", "/data/scenes", "s3://scenes:train", "", "scenes/train"])
def test_other_paths_stay(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "default_scenes", lambda: pytest.fail("the default set isn't needed"))
    assert resolve_place(path) == path


@pytest.mark.parametrize("path", ["scenes:trian", "scenes:", "scenes:train/0.tar"])
def test_unknown_parts_are_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "default_scenes", lambda: pytest.fail("nothing may be written for a wrong name"))
    with pytest.raises(ConfigError, match="valid: scenes:train, scenes:classes, scenes:captions"):
        resolve_place(path)


def test_paths_need_no_heavy_library() -> None:
    code = "import sys, mmrep.data.paths; sys.exit(', '.join({'PIL', 'torch', 'fsspec'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
