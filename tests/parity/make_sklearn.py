"""Writes sklearn.json: what scikit-learn and CLIP_benchmark make of the arrays that `problem` and `several` draw.

Run in CLIP_benchmark's environment (clip-benchmark 1.6.2, scikit-learn 1.9.1): python tests/parity/make_sklearn.py
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PENALTIES = (1e-6, 1e-4, 1e-2)
NEIGHBOURS = (1, 5, 20)
TEMPERATURE = 0.07


class Problem(NamedTuple):
    """A classification in a narrow cone, float64, of unit length."""

    train: NDArray[np.float64]
    labels: NDArray[np.int64]
    test: NDArray[np.float64]
    test_labels: NDArray[np.int64]


def uniform(seed: int, *shape: int) -> NDArray[np.float64]:
    """Draws from [-1, 1) that no version of numpy changes."""
    bits = np.random.Philox(key=seed).random_raw(int(np.prod(shape))) >> np.uint64(11)
    return (bits.astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def problem() -> Problem:
    """600 samples to learn from and 200 to test on, 24 wide, of 6 overlapping classes."""
    centres, noise = uniform(1, 6, 24), uniform(2, 800, 24)
    labels = np.arange(800) % 6
    features = centres[labels] + 2.5 * noise + 1.5
    features /= np.sqrt((features**2).sum(1, keepdims=True))
    return Problem(features[:600], labels[:600], features[600:], labels[600:])


def several() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and targets of 300 images and 9 classes, one of which has no image."""
    scores = uniform(3, 300, 9)
    targets = uniform(4, 300, 9) + 0.5 * scores > 0.7
    targets[:, 4] = False
    return scores, targets


def tied() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Images, classes and labels of small whole numbers, so that scores are exact and tie."""
    images, classes = np.floor(3 * uniform(5, 700, 4)), np.floor(3 * uniform(6, 30, 4))
    return images, classes, np.arange(700) % 30


def main() -> None:
    """See the head of this file."""
    import sklearn
    import torch
    from clip_benchmark.metrics.zeroshot_classification import accuracy, average_precision_per_class
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier

    found: dict[str, Any] = {"sklearn": sklearn.__version__, "probe": [], "knn": [], "precision": {}, "ties": {}}
    data = problem()
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / (penalty * len(data.train)), solver="newton-cg", tol=1e-12, max_iter=10**5)
        model.fit(data.train, data.labels)
        found["probe"].append(
            {
                "penalty": penalty,
                "coefficients": model.coef_.T.tolist(),
                "probabilities": model.predict_proba(data.test[:25]).tolist(),
                "accuracy": model.score(data.test, data.test_labels),
                "mean_per_class_recall": balanced_accuracy_score(data.test_labels, model.predict(data.test)),
            }
        )
    for k in NEIGHBOURS:
        votes = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))
        predicted = votes.fit(data.train, data.labels).predict(data.test)
        found["knn"].append({"k": k, "predicted": predicted.tolist()})
    scores, targets = several()
    found["precision"]["sklearn"] = [
        float(average_precision_score(own, column)) if own.any() else 0.0
        for own, column in zip(targets.T, scores.T, strict=True)
    ]
    per_class = average_precision_per_class(torch.from_numpy(scores).float(), torch.from_numpy(targets))
    found["precision"]["clip_benchmark"] = per_class.mean().item()
    images, classes, labels = tied()
    logits, wanted = torch.from_numpy(100.0 * images @ classes.T).float(), torch.from_numpy(labels)
    acc1, acc5 = accuracy(logits, wanted, topk=(1, 5))
    recall = balanced_accuracy_score(wanted, logits.argmax(1))
    found["ties"] = {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": recall}
    place = Path(__file__).with_name("sklearn.json")
    place.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
