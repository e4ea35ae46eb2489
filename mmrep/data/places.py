"""Short names of the sets that come with mmrep."""

from mmrep.config.checks import one_of

_SCENES = "scenes:"
_PARTS = ("train", "classes", "captions")


def resolve_place(path: str) -> str:
    """The folder that a place names.

    Args:
        path: `scenes:train`, `scenes:classes` or `scenes:captions` (a part of the default scenes, which are written on
            first use), or any other path, which is returned as it is.

    Raises:
        ConfigError: an unknown part of the scenes.
    """
    if not path.startswith(_SCENES):
        return path
    one_of("scenes", path, [_SCENES + part for part in _PARTS])
    # Numpy and PIL are needed only here.
    from mmrep.data.scenes import default_scenes

    return str(default_scenes() / path.removeprefix(_SCENES))
