"""The files that a task leaves in its folder beside its record, and what each is; results/README.md says more."""

from pathlib import Path

PREDICTIONS = "predictions.npz"
CURVES = "curves.jsonl"
CLASSES = "classes{}.csv"
CONFUSION = "confusion{}.npz"
PRECISION_RECALL = "precision_recall.npz"
DETECTIONS = "detections.json.gz"
PICTURES = "pictures"
MOST_PICTURES = 24  # of a kind
EVENTS = "tensorboard"
HEAD = "head.safetensors"
MODEL = "model.pth"

FILES = {
    PREDICTIONS: "of each test image the right class, the best classes and their probabilities",
    CURVES: "loss, rate and accuracy of the training, a line a point",
    EVENTS: "the same points as events, for tensorboard --logdir",
    CLASSES.format(""): "the metrics of each class",
    CLASSES.format("_ms"): "the metrics of each class, at several scales",
    CONFUSION.format(""): "pixels by right and by predicted class",
    CONFUSION.format("_ms"): "pixels by right and by predicted class, at several scales",
    PRECISION_RECALL: "precision against recall, the mean of the classes and of each class",
    DETECTIONS: "every detection that was scored, as COCO results",
    PICTURES: "pictures that the task drew, with an index for each kind",
    "imagenet_c.csv": "the error of each corruption and severity",
    HEAD: "the linear head on the frozen encoder",
    MODEL: "the trained detector or segmenter",
    "classifier.safetensors": "the fine-tuned classifier",
}


def found(folder: Path) -> dict[str, str]:
    """What each file of a task's folder is, by its name."""
    return {name: meaning for name, meaning in FILES.items() if (folder / name).exists()}
