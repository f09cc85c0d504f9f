"""Speed, beside what users would run otherwise: only ratios count, and only those of one run.

python scripts/benchmark.py mae                    # one MAE step against transformers' ViTMAEForPreTraining, 32 pixels
python scripts/benchmark.py mae --size base        # the same for ViT-B/16 at 224 pixels
python scripts/benchmark.py loop                   # what the loop adds to a step, against Accelerate's and the Trainer's

Each round runs every variant once, one after the other, so that other programs on the machine slow all of them alike.
"""

import argparse
import contextlib
import io
import multiprocessing
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
from hf_ssl.training import TrainingArguments, _adamw, _choose_attention, train

MAE = {  # batch; image, patch, width, heads; width, layers and heads of the decoder; least speed-up in fp32 and bf16
    "tiny": (64, (32, 4, 192, 3), (128, 4, 4), (0.97, 1.45)),
    "base": (8, (224, 16, 768, 12), (512, 8, 16), (0.97, 1.5)),
}
LOOP = dict(per_device_train_batch_size=8, max_grad_norm=1.0, logging_steps=10, lr_scheduler_type="cosine")
WINDOW = 20  # steps of the loop between two looks at the clock
MOST_OF_TRAINER, OVER_ACCELERATE = 0.6, 0.1  # our overhead: part of the Trainer's, milliseconds above Accelerate's


def interleave(variants, rounds):
    """{name: seconds of each round} of {name: function}, after one round of warm-up."""
    seconds = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            start = perf_counter()
            run()
            seconds[name].append(perf_counter() - start)
    return {name: own[1:] for name, own in seconds.items()}


def optimizer_step(model, optimizer, batch):
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def mae(size, rounds):
    batch, (image, patch, width, heads), decoder, least = MAE[size]
    sizes = dict(hidden_size=width, num_hidden_layers=12, num_attention_heads=heads, intermediate_size=4 * width)
    vit = ViTConfig(image_size=image, patch_size=patch, layer_norm_eps=1e-6, **sizes)
    names = ("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads")
    decoder = dict(zip(names, decoder, strict=True)) | {"decoder_intermediate_size": 4 * decoder[0]}
    config = MAEConfig(backbone_config=vit, attn_implementation="sdpa", **decoder)
    weights = MAEForPreTraining(config).state_dict()
    images, noise = {"pixel_values": torch.randn(batch, 3, image, image)}, torch.rand(batch, (image // patch) ** 2)
    losses = []

    def reference(**how):
        model = ViTMAEForPreTraining(config.vit_mae).train()
        model.load_state_dict(weights)
        losses.append(model(**images, noise=noise).loss.item())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, **how)
        return partial(optimizer_step, model, optimizer, images)

    def ours(precision):
        AcceleratorState._reset_state(reset_partial_state=True)  # it takes one precision for the whole process
        accelerator = Accelerator(mixed_precision=precision, cpu=True)
        model = MAEForPreTraining(config).train()
        model.load_state_dict(weights)
        _choose_attention(model, accelerator)
        model, optimizer = accelerator.prepare(model, _adamw(model, 1e-4, TrainingArguments()))
        losses.append(model(**images, noise=noise).loss.item())
        return partial(optimizer_step, model, optimizer, images | {"sample_seeds": torch.arange(batch)})

    variants = {
        "transformers fp32, sdpa, torch.optim.AdamW (a loop)": reference(),
        "transformers fp32, sdpa, AdamW(fused=True)": reference(fused=True),
        "hf_ssl fp32, as the training loop runs it": ours("no"),
        "hf_ssl bf16, as the training loop runs it": ours("bf16"),
    }
    for loss, tolerance in zip(losses, (0, 1e-5, 1e-5, 1e-2), strict=True):
        if abs(loss / losses[0] - 1) > tolerance:
            raise ValueError(f"The losses must be equal before timing, found {losses}.")
    seconds = interleave(variants, rounds)
    plain, fused, fp32, bf16 = seconds.values()
    print(f"MAE {size}, batch {batch}, {rounds} rounds, equal losses. Times as fast as the reference, by medians,")
    print(f"{'':52s} {'plain':>8s} {'fused':>8s} {'plain, by minima':>18s}")
    for name, own in seconds.items():
        ratios = (median(plain) / median(own), median(fused) / median(own), min(plain) / min(own))
        print("{:52s} {:7.2f}x {:7.2f}x {:17.2f}x".format(name, *ratios))
    verdict(f"fp32 at least {least[0]}x", median(plain) / median(fp32) >= least[0])
    verdict(f"bf16 at least {least[1]}x", median(plain) / median(bf16) >= least[1])


class ToyConfig(SSLConfig):
    model_type = "ssl_toy"


class Toy(SSLModel):
    """A step that costs next to nothing. Every WINDOW steps it reports their seconds and waits for its next turn."""

    config_class = ToyConfig

    def __init__(self, turn):
        super().__init__(ToyConfig())
        self.layers = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
        self.post_init()
        self.turn, self.steps, self.start = turn, 0, perf_counter()

    def forward(self, x):
        self.steps += 1
        if self.steps % WINDOW == 0:
            self.turn.send(perf_counter() - self.start)
            self.turn.recv()
            self.start = perf_counter()
        features = self.layers(x)
        return SSLOutput(loss=features.pow(2).mean(), features=features)


class ToyDecoder:
    """Rows to tensors that lie in memory: for hf_ssl's loader, and as the collate_fn of the others'."""

    def __init__(self, count):
        self.table = torch.randn(count, 32)

    def decode(self, row):
        return self.table[row["row"]]

    def collate(self, items, sample_seeds):
        return {"x": torch.stack(items)}

    def view(self, x):
        return {"x": x}

    def __call__(self, rows):
        return self.collate([self.decode(row) for row in rows], None)


def run_torch(model, data, decoder, steps, folder, accelerator=None):
    optimizer, loader = _adamw(model, 1e-4, TrainingArguments()), DataLoader(data, 8, shuffle=True, collate_fn=decoder)
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


def run_accelerate(*arguments):
    run_torch(*arguments, Accelerator(cpu=True))


def run_trainer(model, data, decoder, steps, folder):
    own = dict(report_to="none", save_strategy="no", use_cpu=True, dataloader_pin_memory=False, optim="adamw_torch_fused")
    args = TrainerArguments(folder, max_steps=steps, remove_unused_columns=False, **own, **LOOP)
    Trainer(model, args, train_dataset=data, data_collator=decoder).train()


def run_ours(model, data, decoder, steps, folder):
    train(model, data, decoder, TrainingArguments(folder, max_steps=steps, save_steps=0, **LOOP))


def in_turn(run, turn, steps):
    torch.set_num_threads(1)
    data = datasets.Dataset.from_dict({"row": range(8 * steps)})
    silence = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, silence[0], silence[1]:  # progress bars
        run(Toy(turn), data, ToyDecoder(8 * steps), steps, folder)


def loop(size, rounds):
    runs = {"torch": run_torch, "Accelerate": run_accelerate, "Trainer": run_trainer, "hf_ssl": run_ours}
    context, turns, processes = multiprocessing.get_context("spawn"), {}, []
    windows = 10 * rounds
    for name, run in runs.items():
        turns[name], far_end = context.Pipe()
        processes.append(context.Process(target=in_turn, args=(run, far_end, WINDOW * (windows + 2))))
        processes[-1].start()
    for turn in turns.values():
        turn.recv()  # the first window, with the start in it, does not count

    def window(turn):
        turn.send(None)
        return turn.recv()

    seconds = {name: [] for name in runs}
    for _ in range(windows):
        for name, turn in turns.items():
            seconds[name].append(window(turn))
    for turn, process in zip(turns.values(), processes, strict=True):
        turn.send(None)
        turn.send(None)
        process.join()
    for name in runs: print(name, [round(median(seconds[name][i::3])/WINDOW*1e3,3) for i in range(3)], round(min(seconds[name])/WINDOW*1e3,3))
    import statistics
    overhead = {name: [1e3 / WINDOW * (a - b) for a, b in zip(own, seconds["torch"], strict=True)] for name, own in seconds.items()}
    for n,o in overhead.items(): print(n, "overhead median", median(o), "q25", sorted(o)[len(o)//4], "min-min", 1e3/WINDOW*(min(seconds[n])-min(seconds["torch"])))


def verdict(text, met):
    print(f"{'met   ' if met else 'MISSED'} {text}")


BENCHMARKS = {"mae": mae, "loop": loop}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--size", choices=MAE, default="tiny", help="Of the model, where there are several.")
    parser.add_argument("--rounds", type=int, default=5, help="How often each variant is timed.")
    args = parser.parse_args()
    BENCHMARKS[args.name](args.size, args.rounds)


if __name__ == "__main__":
    main()
