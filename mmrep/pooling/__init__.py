"""Pooling heads: tokens of a trunk in, one embedding out."""

from mmrep.pooling.contract import Pooled, PoolingHead, Tokens
from mmrep.pooling.registry import build_pool, list_pools

__all__ = ["Pooled", "PoolingHead", "Tokens", "build_pool", "list_pools"]
