"""The commands `list` and `verify`: what there is to train, and whether a download is whole."""

import argparse
import importlib
import json
import re

import torch

from ..evaluation.results import scores
from ..hub import verify
from ..hub.card import CARDS
from ..methods import METHODS
from ..training.arguments import check_known

RESULTS = CARDS / "results"
PAPER = re.compile(
    r"(?:((?:van den )?\w+(?: et al\.| and (?:van der )?\w+)? \d{4})[,:]?\s+)?(https://arxiv\.org/abs/([\d.]+\d))"
)


def list_command(arguments):
    """Print methods with their presets: parameters, what they are for, and what recorded runs of them have shown."""
    parser = argparse.ArgumentParser(prog="hf-ssl list", description=list_command.__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="None: all.")
    names = parser.parse_args(arguments).methods or METHODS
    for name in names:
        check_known("method", name, METHODS)
    for name in names:
        print(describe_method(name))


def describe_method(name):
    """Its paper, its presets with their parameters and purposes, and the proof of the default one."""
    title = importlib.import_module(f"hf_ssl.methods.{name}").__doc__.splitlines()[0]
    lines = [f"{name}: {title}", f"  {'; '.join(' '.join(filter(None, paper[:2])) for paper in papers(name))}"]
    presets = importlib.import_module(f"hf_ssl.scripts.pretrain_{name}").PRESETS
    for preset, recipe in presets.items():
        proof = "; ".join(changes(name)[:2]) if preset == recorded(name).get("preset") else ""
        count = parameters(METHODS[name], recipe)
        size = f"{count / 1e6:.1f} M" if count > 1e5 else "by words"
        lines.append(f"  {preset:14} {size:>9}   {recipe.purpose}; {proof or 'unproven'}")
    return "\n".join(lines) + "\n"


def papers(name):
    """(author and year or nothing, address, arXiv's number) of each paper that the method's docstring names."""
    return PAPER.findall(importlib.import_module(f"hf_ssl.methods.{name}").__doc__)


def preset_config(model_class, preset):
    """The config of a preset, with a vocabulary of the size that its recipe asks for."""
    config = model_class.config_class(**preset.config)
    if words := preset.training.get("vocab_size"):
        getattr(config.backbone_config, "text_config", config.backbone_config).vocab_size = words
    return config


def parameters(model_class, preset):
    """How many parameters a preset trains; nothing is allocated."""
    config = preset_config(model_class, preset)
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters() if p.requires_grad)


def recorded(name):
    """What `scripts/update_readme.py` has recorded of the default runs of a method; {} if nothing."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def proof_rows(name):
    """The two rows of a method's results that prove it: what it is to beat, and itself."""
    return "labels_alone" if METHODS[name].learns_from_labels else "random_initialisation", "pretrained"


def changes(name):
    """Each recorded number of the default runs in words, seed by seed: what the method is to beat → the method."""
    kept = recorded(name)
    rows = [[run["results"].get(row, {}) for run in kept.get("runs", [])] for row in proof_rows(name)]
    shown = []
    for column, metric in scores(kept.get("metrics", {})).items():
        if all(column in found for row in rows for found in row):  # what all runs have on both sides
            before, after = (" / ".join(f"{found[column]:.{metric.digits}f}" for found in row) for row in rows)
            unit = "" if metric.unit == "%" else f" {metric.unit}"
            shown.append(f"{metric.title or column.replace('_', ' ')} {before} → {after}{unit}")
    return shown


def verify_command(arguments):
    """Download a repository if it is not in the cache, and compare each file with the Hub's record of its hash."""
    parser = argparse.ArgumentParser(prog="hf-ssl verify", description=verify_command.__doc__)
    parser.add_argument("repo_id", help="org/name.")
    parser.add_argument("--revision", help="Branch, tag or commit.")
    args = parser.parse_args(arguments)
    files = verify(args.repo_id, args.revision)
    print(f"{args.repo_id} is whole: {len(files)} files are what the Hub says they are.")
