"""What a loop adds to a step: ours, Accelerate's bare one and the Trainer's."""

import contextlib
import io
import tempfile
from functools import partial
from statistics import median
from time import perf_counter

import datasets
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers import TrainingArguments as TrainerArguments

from hf_ssl.methods._base import SSLConfig, SSLModel, SSLOutput
from hf_ssl.training.arguments import TrainingArguments
from hf_ssl.training.loop import train
from hf_ssl.training.optimizers import build_optimizer

from .timing import SPAWN, device, interleave, place, synchronize, verdict

LOOP = dict(per_device_train_batch_size=8, max_grad_norm=1.0, logging_steps=10, lr_scheduler_type="cosine")
WINDOW = 20  # steps of a loop before it is another's turn
OF_TRAINER = 0.6  # the most that our loop may add to a step, as a part of what the Trainer adds


class Toy(SSLModel):
    """A step that costs next to nothing. After each WINDOW of them it tells their seconds and waits for its turn."""

    def __init__(self, turn):
        super().__init__(SSLConfig())
        self.layers = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
        self.post_init()
        self.turn, self.steps, self.start = turn, 0, perf_counter()

    def forward(self, x):
        if self.steps % WINDOW == 0:
            synchronize()
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
    model = model.to(device())
    optimizer, loader = (
        build_optimizer(model, 1e-4, TrainingArguments()),
        DataLoader(data, 8, shuffle=True, collate_fn=decoder),
    )
    scheduler, clip = get_scheduler("cosine", optimizer, 0, steps), nn.utils.clip_grad_norm_
    total = torch.zeros((), device=device())
    if accelerator:
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
        clip = accelerator.clip_grad_norm_
    for step, batch in enumerate(loader, start=1):
        with accelerator.accumulate(model) if accelerator else contextlib.nullcontext():
            loss = model(**{name: value.to(device()) for name, value in batch.items()}).loss
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


def compare(rounds):
    windows, turns = 10 * rounds, {}
    runs = {"torch": torch_loop, "Accelerate": accelerate_loop, "Trainer": trainer_loop, "hf_ssl": our_loop}
    for name, run in runs.items():
        turns[name], far_end = SPAWN.Pipe()
        SPAWN.Process(target=run_in_turn, args=(run, far_end, (windows + 1) * WINDOW + 1)).start()
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
    print(
        f"What a step costs above a bare torch loop's, {place()}, {windows} windows of {WINDOW} steps; part of the Trainer's"
    )
    for name, own, least in zip(list(runs)[1:], added, fastest, strict=True):
        print(f"{name:12s}{own / added[1]:6.2f}x   of minima {least / fastest[1]:.2f}x   ({own:+.2f} ms here and now)")
    verdict("overhead of hf_ssl over the Trainer's", added[2] / added[1], OF_TRAINER, most=True)
