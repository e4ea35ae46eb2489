"""Contrastive losses."""

from mmrep.loss.contrastive import contrastive_loss

__all__ = ["contrastive_loss"]
