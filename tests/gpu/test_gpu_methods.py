"""Every method on the device: it learns in each precision, gives the CPU's numbers, and never makes the host wait."""

import copy
from contextlib import contextmanager
from statistics import mean

import datasets
import pytest
import torch
from accelerate import Accelerator
from methods.tester import find_tester
from torch.utils._python_dispatch import TorchDispatchMode

from hf_ssl import Word2VecConfig, Word2VecForPreTraining
from hf_ssl.data import load_split, text_rows
from hf_ssl.data.words import Corpus
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingArguments, WordArguments
from hf_ssl.training.loop import choose_kernels, train
from hf_ssl.training.optimizers import build_optimizer
from hf_ssl.training.word_loop import train_words

STEPS, ROWS = 80, 8
RATE = 3e-3  # of AdamW, at ROWS samples a step
WAITING = {  # operators whose result the host reads, or whose shape it has to learn: on a GPU it would wait for them
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_consecutive", "aten::unique_dim", "aten::repeat_interleave.Tensor", "aten::bincount",
}  # fmt: skip


class Batches:
    """The loop's decoder: a row is the number of a batch, which the method's tester makes. Draws are left to the model."""

    def __init__(self, tester):
        self.tester = tester

    def decode(self, row):
        return row["number"]

    def collate(self, items, sample_seeds):
        batch = self.tester.batch(seed=items[0])
        return {name: value for name, value in batch.items() if name not in self.tester.random_arguments}

    def view(self, **batch):
        return batch


@pytest.mark.filterwarnings("ignore::hf_ssl.training.health.RepresentationCollapseWarning")  # tiny models may
@pytest.mark.parametrize("name", METHODS)
def test_learns_in_the_loop(name, precision, device, tmp_path):
    """`train` fails by itself at a loss that is not finite. It falls below the first steps', or, where a queue of random
    directions makes these easy, below that of a model which knows nothing."""
    tester = find_tester(name)
    settings = dict(max_steps=STEPS, logging_steps=1, save_steps=0, lr_scheduler_type="constant", weight_decay=0.0)
    args = TrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=ROWS, learning_rate=RATE * 256 / ROWS, **settings
    )
    data = datasets.Dataset.from_dict({"number": range(STEPS * ROWS)})
    done = train(tester.model(), data, Batches(tester), args)
    losses = [entry["loss"] for entry in done.history]
    assert next(done.model.parameters()).device.type == device.type
    assert mean(losses[-20:]) < 0.97 * max(mean(losses[:10]), tester.chance_loss), losses


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_the_cpus(name, device):
    """On equal weights, batches and draws; two steps, so that what the first left in buffers counts too."""
    tester = find_tester(name)
    model = tester.model().train()
    other = copy.deepcopy(model).to(device)
    for step in range(2):
        batch = tester.batch(seed=step)
        loss, expected = other(**{name: value.to(device) for name, value in batch.items()}).loss, model(**batch).loss
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4, rel=1e-4)
        loss.backward(), expected.backward()
        found, wanted = (torch.cat([p.grad.flatten().cpu() for p in each.parameters() if p.requires_grad])
                         for each in (other, model))  # fmt: skip
        assert (found - wanted).norm() < 1e-3 * wanted.norm()
        for each in (model, other):
            torch.optim.SGD([p for p in each.parameters() if p.requires_grad], 0.01).step()
            each.zero_grad()
            each.after_step(step / 2)


@contextmanager
def nothing_waits(device):
    """Raise where the host waits for the device: as torch's sync debug mode sees it; on a CPU, by the names of operators."""
    if device.type == "cpu":
        with _RefuseWaiting():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _RefuseWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().removesuffix(".default")
        masked = name == "aten::index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1])
        copied = name == "aten::lift_fresh" and args[0].ndim  # torch.tensor(list): from memory that is not pinned
        if name in WAITING or masked or copied:
            raise RuntimeError(f"{name} makes the host wait for the device")
        return operator(*args, **kwargs or {})


WAITS = {  # once a step, known and left
    "bert": "transformers looks whether any token is padding, to leave out the mask if none is",
    "cpc_text": "known words alone are convolved, and how many there are has to be known",
}
STEPS = [
    pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=WAITS[name]) if name in WAITS else ())
    for name in METHODS
]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_never_waits_for_the_device(name, precision, device):
    """Forward, backward, optimizer and after_step as the loop takes them; the third of three, when all is in place."""
    if precision == "fp16":
        pytest.skip("the gradient scaler asks for overflows")
    tester, accelerator = find_tester(name), Accelerator()
    model = tester.model()
    choose_kernels(model, accelerator)
    optimizer = build_optimizer(model, RATE, TrainingArguments("unused"))
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)

    def step(batch, progress):
        with accelerator.accumulate(prepared):
            loss = prepared(**batch).loss
            accelerator.backward(loss)
            optimizer.optimizer.step()
            optimizer.optimizer.zero_grad()
        model.after_step(progress)
        return loss.detach()

    batches = [{k: v.to(accelerator.device) for k, v in tester.batch(seed=seed).items()} for seed in range(3)]
    losses = [step(batch, 0.1 * i) for i, batch in enumerate(batches[:2])]
    with nothing_waits(device):
        losses.append(step(batches[2], 0.3))
    assert torch.stack(losses).isfinite().all()


def test_word_vectors_learn_in_their_own_loop(device, tmp_path):
    """Which has neither autograd nor an optimizer (`train_words`)."""
    rows, column = text_rows(load_split(None, "train", sample="text").select(range(100)))
    corpus = Corpus(rows, column)
    sizes = dict(model_type="ssl_word_vectors", vocab_size=len(corpus.words) + 1, hidden_size=16)
    model = Word2VecForPreTraining(Word2VecConfig(backbone_config=sizes))
    model.counts.copy_(corpus.counts)
    settings = dict(num_train_epochs=3, learning_rate=0.05, logging_steps=1, save_steps=0, cpu_threads=1)
    done = train_words(model, corpus, WordArguments(str(tmp_path / "run"), **settings))
    losses = [entry["loss"] for entry in done.history]
    assert next(done.model.parameters()).device.type == device.type
    assert losses[-1] < 0.95 * losses[0], losses
