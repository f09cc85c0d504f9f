"""Fine-tuning of a text encoder: classification and regression of texts and of pairs of texts.

BERT's settings (https://github.com/google-research/bert, run_classifier.py and optimization.py). The network is what
`AutoModelForSequenceClassification` makes of the checkpoint, with its dropout; where transformers has none, a linear
head on the feature that the probes use. Deviations: torch's AdamW, which corrects the bias of its means, and at least
100 steps, since 1% of the labels make few in 3 epochs.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS

from ...errors import InputError
from ..processes import process_state
from ..results import Metric
from .low_label import balanced_subset

EPOCHS, BATCH_SIZE = 3, 32  # README and run_classifier.py
LEARNING_RATE = 5e-5  # run_classifier.py; the README has 2e-5, small models want more
WEIGHT_DECAY, EPSILON, MAX_NORM = 0.01, 1e-6, 1.0  # optimization.py; decay not on biases and norms
WARMUP = 0.1  # of the steps
MIN_STEPS = 100
SETTINGS = {
    "optimizer": "AdamW, linear decay",
    "epochs": EPOCHS,
    "min_steps": MIN_STEPS,
    "batch_size": BATCH_SIZE,
    "learning_rate": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
    "warmup": WARMUP,
    "max_grad_norm": MAX_NORM,
    "random_initialisation": "the same run from random weights",
}
CORRELATIONS = ("pearson", "spearman")
TASKS = {  # GLUE (https://arxiv.org/abs/1804.07461, table 1): task to ends of columns, the first one's column has none
    "cola": ("matthews",),
    "sst2": ("",),
    "mrpc": ("", "f1"),
    "qqp": ("", "f1"),
    "stsb": CORRELATIONS,
    "mnli": ("",),
    "qnli": ("",),
    "rte": ("",),
    "wnli": ("",),
}
METRICS = {
    "fine_tune_f1": Metric("fine-tuned F1", "f1"),
    "fine_tune_matthews": Metric("fine-tuned Matthews correlation x 100", "matthews_correlation"),
    "fine_tune_pearson": Metric("fine-tuned Pearson correlation x 100", "pearsonr"),
    "fine_tune_spearman": Metric("fine-tuned Spearman correlation x 100", "spearmanr"),
}


class HeadOnFeature(nn.Module):
    """A linear layer on an encoder's feature, for architectures that have no classifier in transformers."""

    def __init__(self, encoder, width, outputs):
        super().__init__()
        self.backbone, self.feature = encoder.model, encoder
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)  # as BERT's classifier
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs):
        return self.head(self.feature(inputs))


class NativeClassifier(nn.Module):
    """A *ForSequenceClassification. A pair is read as one input."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(**tokens).logits


def fine_tune_text(
    encoder, train, test, classes=None, *, fraction=1.0, epochs=EPOCHS, batch_size=BATCH_SIZE, task=None,
    learning_rate=LEARNING_RATE, min_steps=MIN_STEPS, seed=0, device=None,
):  # fmt: skip
    """{end of the column's name: score on `test`}, after training a copy of `encoder` on a `fraction` of `train`.

    classes: their number, None for regression. task: a key of TASKS, which chooses the scores; otherwise accuracy, or,
    for regression, Pearson's and Spearman's correlation. The fraction is balanced between classes.
    """
    device = device or process_state().device
    names = CORRELATIONS if classes is None else TASKS.get(task, ("",))
    if "f1" in names and classes > 2:
        raise InputError(f"Task '{task}' is measured by F1, which is for 2 classes: found {classes}.")
    if fraction < 1:
        strata = torch.zeros(len(train.labels)) if classes is None else train.labels
        train = train.subset(balanced_subset(strata, fraction, seed).tolist())
    with torch.random.fork_rng():  # head and dropout
        torch.manual_seed(seed)
        encoder = copy.copy(encoder)
        encoder.model = copy.deepcopy(encoder.model).to(device)
        classifier, read = _classifier(encoder, classes or 1, train.items[0], device)
        _train(classifier, read, train, classes, epochs, batch_size, learning_rate, min_steps, seed)
        logits = _predict(classifier.eval(), read, test.items, batch_size)
    return _scores(logits, test.labels, names)


def _classifier(encoder, outputs, item, device):
    """(the network; a function of items to its input)."""
    config = copy.deepcopy(encoder.model.config)
    if type(config) in CLASSIFIERS:
        config.num_labels = outputs
        config.pad_token_id = encoder.processor.pad_token_id  # decoders classify at the last token before it
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        if type(model.base_model) is type(encoder.model):
            weights = encoder.model.state_dict()
            model.base_model.load_state_dict({name: weights[name] for name in model.base_model.state_dict()})
            return NativeClassifier(model).to(device), lambda items: encoder.tokenize(items, device)
    with torch.no_grad():
        width = encoder(encoder.preprocess([item], device)).shape[1]
    return HeadOnFeature(encoder, width, outputs).to(device), lambda items: encoder.preprocess(items, device)


def _train(classifier, read, train, classes, epochs, batch_size, learning_rate, min_steps, seed):
    decayed = [p for p in classifier.parameters() if p.ndim > 1]
    others = [p for p in classifier.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, eps=EPSILON, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = math.ceil(len(train.items) / batch_size)
    steps = max(epochs * steps_per_epoch, min_steps)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    generator = torch.Generator().manual_seed(seed)
    classifier.train()
    for step in tqdm(range(steps), desc="fine-tuning", unit="step"):
        place = step % steps_per_epoch
        if place == 0:
            order = torch.randperm(len(train.items), generator=generator)
        rows = order[place * batch_size : (place + 1) * batch_size]
        logits = classifier(read([train.items[row] for row in rows]))
        target = train.labels[rows].to(logits.device)
        if classes is None:
            loss = functional.mse_loss(logits[:, 0], target)
        else:
            loss = functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
    if not loss.isfinite():
        raise InputError("fine_tune: the loss is not finite at the end: lower fine_tune_learning_rate.")


@torch.no_grad()
def _predict(classifier, read, items, batch_size):
    batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
    return torch.cat([classifier(read(list(batch))).cpu() for batch in batches])


def _scores(logits, labels, names):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

    predicted = (logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)).numpy()
    labels = labels.numpy()
    measures = {
        "": lambda: (predicted == labels).mean(),
        "f1": lambda: f1_score(labels, predicted, zero_division=0.0),
        "matthews": lambda: matthews_corrcoef(labels, predicted),
        "pearson": lambda: pearsonr(labels, predicted).statistic,
        "spearman": lambda: spearmanr(labels, predicted).statistic,
    }
    scores = {}
    for name in names:
        undefined = name in CORRELATIONS and (predicted == predicted[0]).all()  # of equal predictions
        scores[f"_{name}" if name else ""] = 0.0 if undefined else float(measures[name]())
    return scores


__all__ = ["METRICS", "SETTINGS", "TASKS", "fine_tune_text"]
