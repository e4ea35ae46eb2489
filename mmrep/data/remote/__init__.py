"""Remote files: shards through a bounded local cache, ahead of their use; small files; lists of addresses.

An address is anything that fsspec knows (https, s3, gs, hf, memory, …; `file:///…` copies from a slow disk to that of
the cache). Credentials and options come from fsspec's configuration files and variables; no message shows any.
"""

from mmrep.data.remote.addresses import expand_remote, is_remote, read_remote, remote_folders, remote_size
from mmrep.data.remote.cache import Prefetcher, ShardCache, Wanted
from mmrep.data.remote.locks import HeldFile

__all__ = [
    "HeldFile",
    "Prefetcher",
    "ShardCache",
    "Wanted",
    "expand_remote",
    "is_remote",
    "read_remote",
    "remote_folders",
    "remote_size",
]
