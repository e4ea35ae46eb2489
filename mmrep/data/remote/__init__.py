"""Remote files: shards through a bounded local cache, small files, sizes and listings.

An address is anything that fsspec opens (https, s3, gs, hf, memory, …; `file:///…` copies from a slow disk to the disk
of the cache). Credentials and options come from fsspec's configuration files and variables; no message shows any.

fsspec's own `filecache` is not used, because it has no size limit and deletes by age, even files that are being read;
processes that need the same shard each download it; and a broken download begins anew (fsspec's HTTP does not retry).
"""

from mmrep.data.remote.cache import HeldFile, ShardCache
from mmrep.data.remote.download import expand_remote, is_remote, read_remote, remote_folders, remote_size

__all__ = ["HeldFile", "ShardCache", "expand_remote", "is_remote", "read_remote", "remote_folders", "remote_size"]
