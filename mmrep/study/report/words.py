"""The words of the report: names of metrics, definitions, and the publications that heads come from."""

import re

_METRICS = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "mean_average_precision": "mAP",
    "image_retrieval_recall": "text→image R",
    "text_retrieval_recall": "image→text R",
    "reranked_image_retrieval_recall": "reranked text→image R",
    "lp_acc1": "linear-probe accuracy",
    "finetune_acc1": "fine-tuned accuracy",
    "knn_acc1": "k-NN accuracy",
    "corruption_acc1": "accuracy under corruption",
    "occlusion_acc1": "accuracy under occlusion",
    "text_acc": "text choice accuracy",
    "image_acc": "image choice accuracy",
    "acc": "pair accuracy",
    "instance_map": "instance mAP",
}


def metric_words(metric: str) -> tuple[str, str]:
    """Return the set and the plain name of a `SET/METRIC`."""
    place, _, name = metric.rpartition("/")
    stem, at, rest = name.partition("@")
    word = _METRICS.get(stem)
    if word is None:
        return place, name
    return place, f"{word}{'' if word.endswith(' R') else ' '}@{rest}" if at else word


TERMS: dict[str, tuple[str, str]] = {
    "arm": ("arm", "One of the things compared: a pooling head and, in a study with axes, one point on each axis."),
    "baseline": ("baseline", "The arm that the others are compared with."),
    "mean": ("mean", "The mean of a metric over the seeds (training runs) of an arm."),
    "sd": (
        "SD",
        "Standard deviation over the seeds of an arm: how much one training run differs from the next. It does not "
        "shrink with more seeds.",
    ),
    "seeds": (
        "seeds",
        "A seed fixes data order, augmentation and initial values. Every arm is trained once with each seed; a seed is "
        "the unit of inference.",
    ),
    "difference": (
        "difference",
        "Mean over seeds of the arm's value minus the other arm's value with the same seed, in percentage points.",
    ),
    "interval": (
        "interval",
        "Where the expected difference plausibly lies. Intervals of registered contrasts hold all at once "
        "(simultaneously); those of other differences hold one at a time.",
    ),
    "verdict": (
        "verdict",
        "Better or worse: the interval excludes zero. Equivalent: it includes zero and lies within ± the margin. "
        "Cannot tell: neither. There is no verdict below 3 seeds, and none on exploratory metrics.",
    ),
    "margin": (
        "margin",
        "The smallest difference that matters, chosen beforehand. Equivalence means: smaller than it.",
    ),
    "p": (
        "p",
        "Probability of a difference at least this large if the arms were equal, for this difference alone "
        "(two-sided).",
    ),
    "p_adjusted": (
        "p adj.",
        "p adjusted for all registered contrasts, in agreement with the simultaneous intervals and the verdict.",
    ),
    "p_holm": (
        "p Holm",
        "p adjusted by Holm's step-down over the registered contrasts. It rejects slightly more than the simultaneous "
        "intervals do; verdicts do not use it.",
    ),
    "family": (
        "family",
        "The registered contrasts of the primary metric. Their intervals and adjusted p-values hold for all of them at "
        "once.",
    ),
    "registered": (
        "registered contrast",
        "A comparison that the config asks for. A change after runs were finished is in the history.",
    ),
    "primary": (
        "primary metric",
        "The one metric that verdicts are about. A change after runs were finished is in the history.",
    ),
    "exploratory": (
        "exploratory",
        "Not registered: intervals and p-values of single differences, unadjusted, and no verdict. Among many, some "
        "look real by chance.",
    ),
    "needed": (
        "seeds needed",
        "Seeds for 80% power: with so many, a true difference of the target size is found four times in five, given "
        "the SD seen here.",
    ),
    "detectable": ("detectable", "The smallest true difference that this many seeds find four times in five."),
    "sd_difference": ("SD of differences", "Standard deviation of the paired differences over seeds."),
    "correlation": (
        "correlation",
        "Correlation over seeds of the two arms' values. The higher it is, the more pairing helps.",
    ),
    "pairing": ("variance left", "Variance of the paired difference as a share of that of an unpaired one."),
    "pareto": ("Pareto front", "The arms that no other arm beats in both: at least as accurate and at least as cheap."),
    "chance": ("chance", "The value of a guess."),
    "gmacs": ("GMACs", "Billions of multiply-adds of the image tower for an image."),
    "latency": ("latency", "Time of the image tower for an image, in batches (1 / images per second)."),
    "memory": ("peak memory", "Greatest memory of the training process."),
    "effective": (
        "patches that count",
        "(Σ|w|)² / (N Σw²) of the patch weights w: 100% if all patches weigh the same, 1/N if one has all the weight.",
    ),
    "off": ("units off", "Share of the pre-activations of the trunk's MLPs that are ≤ 0."),
    "dead": ("dead units", "Share of the units of the trunk's MLPs that are ≤ 0 on every token."),
    "between": ("r between", "Mean absolute correlation of two channels of different groups."),
    "within": ("r within", "Mean absolute correlation of two channels of one group."),
    "hsic": ("HSIC", "Dependence between groups of channels (normalised, RBF kernel): 0 if independent, 1 if equal."),
    "exponent": ("exponent", "p of a power mean: 1 is the mean, and the maximum is approached as p grows."),
}


def used(terms: set[str]) -> dict[str, tuple[str, str]]:
    """Return the definitions of these terms, in the order of the glossary."""
    return {key: value for key, value in TERMS.items() if key in terms}


_KO = "Byungsoo Ko and Han-Gyu Kim and Byeongho Heo and Sangdoo Yun and Sanghyuk Chun and Geonmo Gu and Wonjae Kim"
_PAPERS = {
    "ggem": ("ko2022ggem", _KO, "Group Generalized Mean Pooling for Vision Transformer", "2212.04114"),
    "gem": (
        "radenovic2017gem",
        "Filip Radenović and Giorgos Tolias and Ondřej Chum",
        "Fine-tuning {CNN} Image Retrieval with No Human Annotation",
        "1711.02512",
    ),
    "rgem": (
        "shao2023superglobal",
        "Shihao Shao and Kaifeng Chen and Arjun Karpur and Qinghua Cui and André Araujo and Bingyi Cao",
        "Global Features are All You Need for Image Retrieval and Reranking",
        "2308.06954",
    ),
    "cls": (
        "dosovitskiy2020vit",
        "Alexey Dosovitskiy and others",
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        "2010.11929",
    ),
    "lse": (
        "pinheiro2014lse",
        "Pedro O. Pinheiro and Ronan Collobert",
        "From Image-level to Pixel-level Labeling with Convolutional Networks",
        "1411.6228",
    ),
    "simpool": (
        "psomas2023simpool",
        "Bill Psomas and Ioannis Kakogeorgiou and Konstantinos Karantzalos and Yannis Avrithis",
        "Keep It {SimPool}: Who Said Supervised Transformers Suffer from Attention Deficit?",
        "2309.06891",
    ),
    "map": (
        "zhai2023siglip",
        "Xiaohua Zhai and Basil Mustafa and Alexander Kolesnikov and Lucas Beyer",
        "Sigmoid Loss for Language Image Pre-Training",
        "2303.15343",
    ),
    "cap": (
        "touvron2021cait",
        "Hugo Touvron and Matthieu Cord and Alexandre Sablayrolles and Gabriel Synnaeve and Hervé Jégou",
        "Going deeper with Image Transformers",
        "2103.17239",
    ),
}
_CLIP = (
    "radford2021clip",
    "Alec Radford and others",
    "Learning Transferable Visual Models From Natural Language Supervision",
    "2103.00020",
)


def papers(heads: list[str]) -> list[tuple[str, str, str, str]]:
    """Return key, authors, title and arXiv number of CLIP's paper and of those that the heads come from."""
    names = {re.split(r"[^a-z_]|_(?=[a-z]+-)", head)[0] for head in heads}
    return [_CLIP, *(paper for name, paper in _PAPERS.items() if name in names)]
