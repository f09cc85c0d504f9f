"""Speed on a CPU beside what users would run otherwise. Only ratios count, and only those of one run.

python scripts/benchmark.py mae                 # one MAE step against transformers' ViTMAEForPreTraining, 32 pixels
python scripts/benchmark.py mae --size base     # the same for ViT-B/16 at 224 pixels
python scripts/benchmark.py loop                # what the loop adds to a step, against Accelerate's and the Trainer's

Each round runs every variant once, one after the other, so that other programs on the machine slow all of them alike.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import tempfile
from functools import partial
from statistics import median
from time import perf_counter

import datasets
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, ViTConfig, ViTMAEForPreTraining, get_scheduler
from transformers import TrainingArguments as TrainerArguments

from hf_ssl import MAEConfig, MAEForPreTraining
from hf_ssl.methods._base import SSLConfig, SSLModel, SSLOutput
from hf_ssl.training import TrainingArguments, adamw, choose_attention, train

MAE = {  # batch; image, patch, width and heads; width, layers and heads of the decoder; demanded in fp32 and bf16
    "tiny": (64, (32, 4, 192, 3), (128, 4, 4), (0.97, 1.45)),
    "base": (8, (224, 16, 768, 12), (512, 8, 16), (0.97, 1.5)),
}
LOOP = dict(per_device_train_batch_size=8, max_grad_norm=1.0, logging_steps=10, lr_scheduler_type="cosine")
WINDOW = 20  # steps of a loop before it is another's turn
OF_TRAINER = 0.6  # the most that our loop may add to a step, as a part of what the Trainer adds


def interleave(variants, rounds):
    """{name: seconds of each round} of {name: function that returns its seconds}, after one round of warm-up."""
    seconds = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            seconds[name].append(run())
    return {name: own[1:] for name, own in seconds.items()}


def verdict(what, ratio, demand, most=False):
    met = ratio <= demand if most else ratio >= demand
    print(f"{'met   ' if met else 'MISSED'} {what}: {ratio:.2f}x, demanded at {'most' if most else 'least'} {demand}x")


def mae(size, rounds):
    batch, (image, patch, width, heads), (decoder_width, layers, decoder_heads), demands = MAE[size]
    vit = dict(image_size=image, patch_size=patch, hidden_size=width, num_hidden_layers=12, num_attention_heads=heads)
    config = MAEConfig(
        backbone_config=ViTConfig(**vit, intermediate_size=4 * width, layer_norm_eps=1e-6), attn_implementation="sdpa",
        decoder_hidden_size=decoder_width, decoder_num_hidden_layers=layers, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
    )  # fmt: skip
    weights = MAEForPreTraining(config).state_dict()
    images, noise, losses = torch.randn(batch, 3, image, image), torch.rand(batch, (image // patch) ** 2), []

    def step(model, optimizer, **inputs):
        start = perf_counter()
        model(images, **inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return perf_counter() - start

    def reference(**how):
        model = ViTMAEForPreTraining(config.vit_mae).train()
        model.load_state_dict(weights)
        losses.append(model(images, noise=noise).loss.item())
        return partial(step, model, torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.05, **how))

    def ours(precision):
        AcceleratorState._reset_state(reset_partial_state=True)  # which has one precision for the whole process
        accelerator = Accelerator(mixed_precision=precision)
        model = MAEForPreTraining(config).train()
        model.load_state_dict(weights)
        choose_attention(model, accelerator)
        model, optimizer = accelerator.prepare(model, adamw(model, 1e-4, TrainingArguments()))
        losses.append(model(images, noise=noise).loss.item())
        return partial(step, model, optimizer, sample_seeds=torch.arange(batch))

    variants = {
        "transformers fp32 sdpa, torch.optim.AdamW": reference(),  # not fused unless one asks for it
        "transformers fp32 sdpa, AdamW(fused=True)": reference(fused=True),
        "hf_ssl fp32, as its loop runs it": ours("no"),
        "hf_ssl bf16, as its loop runs it": ours("bf16"),
    }
    for loss, tolerance in zip(losses, (0, 1e-5, 1e-5, 1e-2), strict=True):
        if abs(loss / losses[0] - 1) > tolerance:
            raise ValueError(f"The losses of equal weights, images and masks differ before the timing: {losses}.")
    seconds = interleave(variants, rounds)
    plain, fused, fp32, bf16 = seconds.values()
    print(f"MAE {size}, batch {batch}, {torch.get_num_threads()} threads, {rounds} rounds, losses equal.")
    print(f"{'times as fast as transformers with':42s}torch.optim.AdamW  (of minima)  AdamW(fused=True)")
    for name, own in seconds.items():
        ratios = median(plain) / median(own), min(plain) / min(own), median(fused) / median(own)
        print("{:42s}{:16.2f}x {:11.2f}x {:17.2f}x".format(name, *ratios))
    for name, own, demand in zip(("fp32", "bf16"), (fp32, bf16), demands, strict=True):
        verdict(f"{name} over the reference", median(plain) / median(own), demand)


class Toy(SSLModel):
    """A step that costs next to nothing. After each WINDOW of them it tells their seconds and waits for its turn."""

    def __init__(self, turn):
        super().__init__(SSLConfig())
        self.layers = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
        self.post_init()
        self.turn, self.steps, self.start = turn, 0, perf_counter()

    def forward(self, x):
        if self.steps % WINDOW == 0:
            self.turn.send(perf_counter() - self.start)
            self.turn.recv()
            self.start = perf_counter()
        self.steps += 1
        features = self.layers(x)
        return SSLOutput(loss=features.pow(2).mean(), features=features)


class ToyDecoder:
    """Row numbers to tensors in memory: hf_ssl's interface, and a collate_fn for the others."""

    def __init__(self, rows):
        self.table = torch.randn(rows, 32)

    def decode(self, row):
        return self.table[row["row"]]

    def collate(self, items, sample_seeds):
        return {"x": torch.stack(items)}

    def view(self, x):
        return {"x": x}

    def __call__(self, rows):
        return self.collate([self.decode(row) for row in rows], None)


def torch_loop(model, data, decoder, steps, folder, accelerator=None):
    optimizer, loader = adamw(model, 1e-4, TrainingArguments()), DataLoader(data, 8, shuffle=True, collate_fn=decoder)
    scheduler, total, clip = get_scheduler("cosine", optimizer, 0, steps), torch.zeros(()), nn.utils.clip_grad_norm_
    if accelerator:
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
        clip = accelerator.clip_grad_norm_
    for step, batch in enumerate(loader, start=1):
        with accelerator.accumulate(model) if accelerator else contextlib.nullcontext():
            loss = model(**batch).loss
            accelerator.backward(loss) if accelerator else loss.backward()
            clip(model.parameters(), LOOP["max_grad_norm"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        total += loss.detach()
        if step % LOOP["logging_steps"] == 0:
            total.item()


def accelerate_loop(*arguments):
    torch_loop(*arguments, accelerator=Accelerator())


def trainer_loop(model, data, decoder, steps, folder):
    kept = dict(report_to="none", save_strategy="no", remove_unused_columns=False)
    args = TrainerArguments(folder, max_steps=steps, **kept, **LOOP)  # its AdamW is fused too
    Trainer(model, args, train_dataset=data, data_collator=decoder).train()


def our_loop(model, data, decoder, steps, folder):
    train(model, data, decoder, TrainingArguments(folder, max_steps=steps, save_steps=0, **LOOP))


def run_in_turn(run, turn, steps):
    torch.set_num_threads(1)
    rows = steps * LOOP["per_device_train_batch_size"]
    data, bars = datasets.Dataset.from_dict({"row": range(rows)}), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(bars), contextlib.redirect_stdout(bars):
        run(Toy(turn), data, ToyDecoder(rows), steps, folder)


def loop(size, rounds):
    windows, context, turns = 10 * rounds, multiprocessing.get_context("spawn"), {}
    runs = {"torch": torch_loop, "Accelerate": accelerate_loop, "Trainer": trainer_loop, "hf_ssl": our_loop}
    for name, run in runs.items():
        turns[name], far_end = context.Pipe()
        context.Process(target=run_in_turn, args=(run, far_end, (windows + 1) * WINDOW + 1)).start()
        far_end.close()
    for turn in turns.values():
        turn.recv()  # all have started; the end, with its checkpoint, comes after the last window

    def window(turn):
        turn.send("go")
        return turn.recv()

    bare, *others = interleave({name: partial(window, turn) for name, turn in turns.items()}, windows).values()
    for turn in turns.values():
        turn.send("end")
    # window by window, as the machine's speed changes from one to the next
    added = [median(1e3 / WINDOW * (a - b) for a, b in zip(own, bare, strict=True)) for own in others]
    fastest = [min(own) - min(bare) for own in others]
    print(f"What a step costs above a bare torch loop's, {windows} windows of {WINDOW} steps; part of the Trainer's")
    for name, own, least in zip(list(runs)[1:], added, fastest, strict=True):
        print(f"{name:12s}{own / added[1]:6.2f}x   of minima {least / fastest[1]:.2f}x   ({own:+.2f} ms here and now)")
    verdict("overhead of hf_ssl over the Trainer's", added[2] / added[1], OF_TRAINER, most=True)


BENCHMARKS = {"mae": mae, "loop": loop}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--size", choices=MAE, default="tiny", help="Of the model, where there are several.")
    parser.add_argument("--rounds", type=int, default=5, help="How often each is timed; loop: ten times that.")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="Of mae: 1 is steadier on a busy machine.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    BENCHMARKS[args.name](args.size, args.rounds)


if __name__ == "__main__":
    main()
