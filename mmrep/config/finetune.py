"""The config of fine-tuning on a labelled set."""

from dataclasses import dataclass

from mmrep.config.checks import above, at_least, require, within
from mmrep.config.training import check_length


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the image tower with a linear classifier on a labelled set (transfer, as in MMCAP, table 11).

    Attributes:
        epochs: Epochs over the training split.
        batch_size: Images in one step.
        lrs: Learning rates of the tower to try. The best on the validation part is kept.
        classifier_lr: Learning rate of the classifier, which starts at zero.
        weight_decay: Weight decay of AdamW.
        warmup: Length of the linear warm-up, in steps or, below 1, as a share of all steps. Afterwards rates fall
            to zero in a half cosine.
        min_scale: Smallest share of an image's area that a random crop keeps.
        flip: Mirror half of the images.
        validation: Share of the training split that the learning rate is chosen on.
        seed: Seed of the validation part, the order and the crops.
    """

    epochs: int = 10
    batch_size: int = 64
    lrs: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    classifier_lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    min_scale: float = 0.5
    flip: bool = True
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("finetune.epochs", self.epochs, 1)
        at_least("finetune.batch_size", self.batch_size, 1)
        require(bool(self.lrs), "finetune.lrs: expected at least one")
        for lr in self.lrs:
            above("finetune.lrs", lr, 0)
        above("finetune.classifier_lr", self.classifier_lr, 0)
        at_least("finetune.weight_decay", self.weight_decay, 0)
        check_length("finetune.warmup", self.warmup)
        within("finetune.min_scale", self.min_scale, 0.01, 1)
        within("finetune.validation", self.validation, 0.01, 0.9)
        within("finetune.seed", self.seed, 0, 2**64 - 1)
