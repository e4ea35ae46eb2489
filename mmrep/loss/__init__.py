"""Contrastive losses and token distillation."""

from mmrep.loss.contrastive import contrastive_loss
from mmrep.loss.distill import distillation_loss, total_loss

__all__ = ["contrastive_loss", "distillation_loss", "total_loss"]
