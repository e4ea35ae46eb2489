"""ImageNet-1k's classes: wnids from timm, names and templates from open_clip, the devkit's own numbers."""

from pathlib import Path

from mmrep.config.checks import ConfigError
from mmrep.data.tar import DataError


def imagenet_wnids() -> list[str]:
    """The 1,000 wnids, sorted: label i is the i-th."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def imagenet_names() -> list[str]:
    """The names that OpenAI gave them for CLIP, in the order of the wnids."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def imagenet_templates() -> list[str]:
    """OpenAI's 80 templates."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def devkit_wnids(meta: Path) -> dict[int, str]:
    """The wnids of the devkit's numbers (ILSVRC2012_ID).

    Raises:
        ConfigError: the file can't be read.
        DataError: not the devkit's meta.mat.
    """
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except OSError as error:
        raise ConfigError(f"--devkit_meta: can't read {meta}: {error.strerror}") from error
    except Exception as error:  # scipy has many for a file that is no .mat
        raise DataError(f"{meta}: not the devkit's meta.mat: {error}") from error
