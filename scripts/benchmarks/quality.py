"""Accuracy of MoCo beside lightly's parts: the same weights at the start, views, batches, optimizer and evaluation.

What differs: batch statistics (lightly's example takes those of the whole batch), and all that a loop does by itself.
"""

import copy
import math
import tempfile
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from hf_ssl.scripts.pretrain_moco import PRESETS

from hf_ssl import MoCoConfig, MoCoForPreTraining
from hf_ssl.cli import build_model, image_data, two_views, view_size
from hf_ssl.data import TrainLoader, image_processor
from hf_ssl.evaluation import evaluate_images
from hf_ssl.methods._backbone import pooled
from hf_ssl.training.arguments import TwoViewArguments
from hf_ssl.training.loop import REFERENCE_BATCH, train
from hf_ssl.training.optimizers import build_scheduler

from .timing import device, place, verdict

PROTOCOLS = ("knn", "linear_probe")
OF_KNN = -0.5  # points over lightly, at least


def lightly_train(model, rows, decoder, args):
    """lightly's example from the weights of `model`; the encoder."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    config = model.config
    backbone = model.export_encoder().train().to(device())
    first = model.projector[0]
    head = MoCoProjectionHead(first.in_features, first.out_features, config.projection_size).to(device())
    head.layers.load_state_dict(model.projector.state_dict())
    criterion = NTXentLoss(config.temperature, memory_bank_size=(config.queue_size, config.projection_size))
    criterion = criterion.to(device())
    criterion.memory_bank.bank.copy_(model.queue)
    key_backbone, key_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(key_backbone)
    deactivate_requires_grad(key_head)

    batch_size = args.per_device_train_batch_size
    steps = math.ceil(args.num_train_epochs * len(rows) / batch_size)
    weights, rate = [*backbone.parameters(), *head.parameters()], args.learning_rate * batch_size / REFERENCE_BATCH
    optimizer = torch.optim.SGD(weights, rate, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = build_scheduler(optimizer, args, steps)
    loader = TrainLoader(rows, decoder, batch_size, args.seed, args.dataloader_num_workers)
    for tensors in islice(loader, steps):
        batch = decoder.view(**{name: value.to(device(), non_blocking=True) for name, value in tensors.items()})
        update_momentum(backbone, key_backbone, m=config.momentum)
        update_momentum(head, key_head, m=config.momentum)
        query = head(pooled(backbone, batch["pixel_values"]))
        key = key_head(pooled(key_backbone, batch["pixel_values_2"])).detach()
        criterion(query, key).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return backbone.eval()


def compare_quality(seeds, epochs=None):
    name, (values, training, _) = next(iter(PRESETS.items()))
    training = training | ({"num_train_epochs": epochs} if epochs else {})
    print(f"\nMoCo's accuracy beside lightly's in percent: {name} of pretrain_moco.py, "
          f"{training['num_train_epochs']:g} epochs, seeds 0 to {seeds - 1}, {place()}.")  # fmt: skip
    found = {"random initialisation": [], "lightly": [], "hf_ssl": []}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            one = _one_seed(values, training | {"seed": seed, "output_dir": f"{folder}/run"}, Path(folder))
        for name, numbers in one.items():
            found[name].append(numbers)
            print(f"{name:24s}seed {seed}   " + "   ".join(f"{p} {numbers[p]:.2f}" for p in PROTOCOLS), flush=True)
    means = {name: {p: mean(numbers[p] for numbers in own) for p in PROTOCOLS} for name, own in found.items()}
    for name, own in means.items():
        print(f"{name:24s}mean     " + "   ".join(f"{p} {own[p]:.2f}" for p in PROTOCOLS))
    for protocol in PROTOCOLS:
        gain = means["hf_ssl"][protocol] - means["lightly"][protocol]
        if protocol == "knn":
            verdict("knn over lightly's", gain, OF_KNN, unit=" points")
        else:
            print(f"       {protocol} over lightly's: {gain:.2f} points")


def _one_seed(values, training, folder):
    """{row: {protocol: percent}}"""
    config, args = MoCoConfig(**values), TwoViewArguments(**training)
    size, channels = view_size(config, args), config.backbone_config.num_channels
    processor = image_processor(size, channels)
    rows, decoder = image_data(args, channels, two_views(args, size, processor))
    torch.set_num_threads(args.cpu_threads or torch.get_num_threads())
    encoders = {
        "lightly": lightly_train(build_model(MoCoForPreTraining, config, args), rows, decoder, args),
        "hf_ssl": train(build_model(MoCoForPreTraining, config, args), rows, decoder, args).model.export_encoder(),
    }
    found = {}
    for name, encoder in encoders.items():
        encoder.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        results = evaluate_images(folder / name, protocols=PROTOCOLS, seed=args.seed, baselines=name == "lightly")
        if name == "lightly":
            found["random initialisation"] = results["results"]["random_initialisation"]
        found[name] = results["results"]["pretrained"]
    return found
