"""Speed and memory beside what users would run otherwise. Only ratios count, and only those of one run on one device.

hf-ssl benchmark mae                 # one MAE step against transformers' ViTMAEForPreTraining, 32 pixels
hf-ssl benchmark mae --size base     # the same for ViT-B/16 at 224 pixels
hf-ssl benchmark loop                # what the loop adds to a step, against Accelerate's and the Trainer's
hf-ssl benchmark moco                # step, queue loss, views, whole pipeline and memory against lightly's
hf-ssl benchmark moco --part step --size r50-32
hf-ssl benchmark moco --part quality # accuracies beside lightly's, about ten minutes a seed
hf-ssl benchmark simclr              # step and memory against lightly's
hf-ssl benchmark word2vec            # against gensim, from text to vectors; --size cbow, skip-gram-hs, cbow-hs
hf-ssl benchmark cpc_audio           # step against a plain module with a loop of 12 losses
hf-ssl benchmark clip                # step against open_clip's and transformers', loss over all pairs, memory in parts
hf-ssl benchmark cpc_audio --part table --flags --max_steps 500   # the paper's tables; flags of pretrain_cpc_audio.py
hf-ssl benchmark bert --size mini    # step and memory against transformers' BertForPreTraining
hf-ssl benchmark pretext             # rotation, relative position, jigsaw, exemplar against PIL and loops; --size r18-96
hf-ssl benchmark pretext --part shortcut   # relative position, seen through a lens that shifts colours
hf-ssl benchmark instance_discrimination   # runs: softmax, NCE by draws, parametric, sizes of the embedding
hf-ssl benchmark few_labels          # runs: accuracy by number of labels; --part noise, mixmatch, fixmatch, epsilon
hf-ssl benchmark deep_infomax        # estimates of known mutual information; --output curves.png
hf-ssl benchmark steps --device cuda # table of samples/s and memory: MoCo R50 224, MAE ViT-B, CLIP B/32

Each round runs every variant once, one after the other, so that other programs on the machine slow all of them alike.
All numbers are the CPU's without --device cuda, which every benchmark takes; the titles say which device gave them. On a
device, which is waited for before the clock is looked at, a variant runs ten times a round.
lightly, open_clip and gensim come with pip install -e ".[benchmark]".
"""

import argparse
import importlib.util
import os

import torch
from hf_ssl.scripts.benchmarks import (
    bert,
    clip,
    cpc_audio,
    estimators,
    few_labels,
    instances,
    loop,
    mae,
    moco,
    pretext,
    shortcut,
    simclr,
    steps,
    word2vec,
)

from hf_ssl.cli import set_up_logging
from hf_ssl.errors import InputError, run_script


def contrastive(benchmark, args, rival="lightly"):
    if importlib.util.find_spec(rival) is None:
        raise InputError(f'{rival}, to be compared with, is not installed: pip install -e ".[benchmark]".')
    set_up_logging()
    for part in args.part.split(",") if args.part else benchmark.SIZES[args.size].parts:
        if part not in benchmark.PARTS:
            raise InputError(f"part '{part}' is unknown: expected some of {', '.join(benchmark.PARTS)}.")
        benchmark.PARTS[part](benchmark.SIZES[args.size], args)


def words(args):
    if importlib.util.find_spec("gensim") is None:
        raise InputError('gensim, to be compared with, is not installed: pip install -e ".[benchmark]".')
    word2vec.compare(args.size, args.rounds, args.threads, args.text, args.epochs, args.quality)


BENCHMARKS = {
    "mae": lambda args: mae.compare(args.size, args.rounds),
    "loop": lambda args: loop.compare(args.rounds),
    "moco": lambda args: contrastive(moco, args),
    "simclr": lambda args: contrastive(simclr, args),
    "bert": lambda args: bert.compare(args.size, args.rounds),
    "clip": lambda args: contrastive(clip, args, "open_clip"),
    "cpc_audio": lambda args: cpc_audio.PARTS[args.part](args),
    "pretext": lambda args: (
        shortcut.compare(args.output_dir, args.flags)
        if args.part == "shortcut"
        else pretext.compare(args.size, args.rounds, args.method)
    ),
    "deep_infomax": lambda args: estimators.compare(args.output),
    "instance_discrimination": lambda args: instances.compare(args.output_dir, args.flags),
    "few_labels": lambda args: few_labels.compare(args.part, args.method, args.output_dir, args.flags),
    "word2vec": words,
    "steps": lambda args: steps.write(args.output, rounds=args.rounds),
}
DEVICES = ("cpu", "cuda")


def choose_device(name):
    """Of this process and of those that it starts: Accelerate asks the environment, and everything else asks Accelerate."""
    if name != "cpu" and not torch.get_device_module(name).is_available():
        raise InputError(f"--device {name}: torch sees no such device; expected cpu.")
    os.environ["ACCELERATE_USE_CPU"] = str(name == "cpu").lower()


def _add_run_arguments(parser, folder):
    parser.add_argument("--output_dir", default=folder, help="Of the runs that a table is made of.")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="What follows goes to these runs.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in (
        ("mae", mae),
        ("loop", loop),
        ("moco", moco),
        ("simclr", simclr),
        ("bert", bert),
        ("clip", clip),
        ("cpc_audio", cpc_audio),
        ("pretext", pretext),
        ("deep_infomax", estimators),
        ("instance_discrimination", instances),
        ("few_labels", few_labels),
        ("word2vec", word2vec),
        ("steps", steps),
    ):
        own = names.add_parser(name, help=benchmark.__doc__.split("\n")[0])
        own.add_argument("--rounds", type=int, default=5, help="How often each is timed; loop: ten times that.")
        own.add_argument("--device", choices=DEVICES, default="cpu", help="What ours and the rivals run on.")
        if benchmark is steps:
            own.add_argument("--output", help="A file for the table, in Markdown.")
        elif benchmark is estimators:
            own.add_argument("--output", help="A file for a picture of the curves.")
        if benchmark in (loop, steps, estimators):
            continue
        if benchmark is instances:
            own.add_argument("--part", choices=("table",), default="table", help="The paper's ablations.")
            _add_run_arguments(own, "outputs/instance_discrimination_table")
            continue
        if benchmark is few_labels:
            own.add_argument("--part", choices=few_labels.PARTS, default="labels", help="Which table.")
            own.add_argument("--method", help="Of the parts labels and noise; none: mixmatch, mean_teacher.")
            _add_run_arguments(own, "outputs/few_labels")
            continue
        own.add_argument("--size", choices=benchmark.SIZES, default=next(iter(benchmark.SIZES)), help="Of the model.")
        own.add_argument("--threads", type=int, default=os.cpu_count(), help="1 is steadier on a busy machine.")
        if benchmark is word2vec:
            own.add_argument("--text", help="A file with a sentence in each line; none: the embedded documents.")
            own.add_argument("--epochs", type=int, default=1)
            own.add_argument("--quality", action="store_true", help="Also similarity and analogies of each round.")
        elif benchmark is cpc_audio:
            own.add_argument("--part", choices=benchmark.PARTS, default="step", help="Speed, or the paper's tables.")
            _add_run_arguments(own, "outputs/cpc_table")
        elif benchmark is pretext:
            own.add_argument("--part", choices=("speed", "shortcut"), default="speed", help="Or runs with a bad lens.")
            own.add_argument(
                "--method", choices=pretext.METHODS_COMPARED, help="Of the part speed; none: all of them."
            )
            _add_run_arguments(own, "outputs/shortcut")
        elif benchmark not in (mae, bert):
            own.add_argument("--part", help=f"Some of {','.join(benchmark.PARTS)}; none: what is quick at this size.")
        if benchmark is moco:
            own.add_argument("--seeds", type=int, default=3, help="Of the part quality: runs of each side.")
            own.add_argument("--epochs", type=float, help="Of the part quality; none: as pretrain_moco.py.")
    args = parser.parse_args()
    torch.set_num_threads(getattr(args, "threads", os.cpu_count()))
    choose_device(args.device)
    BENCHMARKS[args.name](args)


if __name__ == "__main__":
    run_script(main)
