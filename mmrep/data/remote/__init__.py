"""Remote files: shards through a bounded local cache, small files, sizes and listings.

An address is anything that fsspec opens (https, s3, gs, hf, memory, …; `file:///…` copies from a slow disk to the disk
of the cache). Credentials and options come from fsspec's configuration files and variables; no message shows any.

fsspec's own `filecache` is not used: it has no size limit, and deletes by age, even files that are being read. Three
processes that need one shard download it three times. A broken connection or one answer of status 503 is an error at
once (503 is reported as a missing file). tests/faults/test_http.py shows what this package does in such cases.
"""

from mmrep.data.remote.cache import HeldFile, ShardCache
from mmrep.data.remote.download import expand_remote, is_remote, read_remote, remote_folders, remote_size

__all__ = ["HeldFile", "ShardCache", "expand_remote", "is_remote", "read_remote", "remote_folders", "remote_size"]
