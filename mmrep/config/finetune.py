"""Fine-tuning on a small labelled set."""

from dataclasses import dataclass

from mmrep.config.checks import above, at_least, require, within


@dataclass(frozen=True)
class FinetuneConfig:
    """The image tower and a linear classifier trained on a labelled set (transfer, as in MMCAP, table 11).

    Attributes:
        epochs: over the training split.
        batch_size: images in a step.
        lrs: learning rates tried, the best by validation kept.
        weight_decay: of AdamW.
        validation: share of the training split that the rate is chosen on.
        seed: of order, crops and the classifier.
    """

    epochs: int = 10
    batch_size: int = 64
    lrs: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    weight_decay: float = 0.05
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("finetune.epochs", self.epochs, 1)
        at_least("finetune.batch_size", self.batch_size, 1)
        require(bool(self.lrs), "finetune.lrs: expected at least one")
        for lr in self.lrs:
            above("finetune.lrs", lr, 0)
        at_least("finetune.weight_decay", self.weight_decay, 0)
        within("finetune.validation", self.validation, 0.01, 0.9)
