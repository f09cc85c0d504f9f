"""The checks that every method passes. A test class names the model, a tiny config, a batch, and the score of ignorance."""

import copy
import importlib
import math
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from processes import on_pair, run_plain
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForPreTraining

from hf_ssl.methods import METHODS
from hf_ssl.methods._backbone import checkpoint_activations
from hf_ssl.methods._base import SSLModel, SSLOutput

TINY_VIT = dict(
    model_type="vit", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
    patch_size=4, layer_norm_eps=1e-6,
)  # fmt: skip
TINY_RESNET = dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def sines(phase, *shape):
    """2 sin(phase + 1.7 k), k = 0, 1 ...: inputs that need no generator, for numbers recorded from other code."""
    return 2 * (phase + 1.7 * torch.arange(float(math.prod(shape)))).sin().view(shape)


def on_vectors(model_class):
    """The method, whose forward is given the projections in the place of images, to compare all that follows them."""

    class OnVectors(model_class):
        def __init__(self, config):
            super().__init__(config)
            self.projector = nn.Identity()

        def embed(self, pixel_values):
            return pixel_values

    return OnVectors


class MethodTester:
    model_class: type[SSLModel]
    config: dict  # of a tiny model
    chance_loss: float  # what a model that knows nothing scores on `batch`
    random_arguments = ("noise",)  # draws of `forward` that `batch` hands in
    most_steps = 400  # in which it learns the batches
    tolerance = 1e-6  # relative, of two processes against one
    floor = 1e-9  # absolute: gradients that are nothing but rounding
    released_heads = ()  # prefixes of what the release has besides the encoder, which AutoModel passes by
    released_call = "model(**inputs)"
    released_features = "output.pooler_output.flatten(1)"  # what of the released encoder's output equals `embed`
    has_blocks = True  # that activation checkpointing knows
    takes_reentrant_checkpoints = True  # torch's older way refuses gradients that `forward` itself takes
    has_hidden_states = True  # of the encoder, which `forward` calls as a whole
    brings_its_code = False  # the released architecture is not in transformers
    teachers: dict[str, str] = {}  # modules that `after_step` lets follow others: {"key_backbone": "backbone"}
    fixed = ()  # prefixes of parameters that nothing moves: position tables, a frozen tower

    def batch(self, seed=0) -> dict:
        raise NotImplementedError

    def inputs(self) -> dict:
        """What `embed` and the released encoder take."""
        name = self.model_class.main_input_name
        return {name: self.batch()[name]}

    def model(self, seed=0):
        torch.manual_seed(seed)
        return self.model_class(self.model_class.config_class(**copy.deepcopy(self.config)))

    def test_every_trained_weight_gets_a_gradient(self):
        """The loss is one finite number, and every weight that is trained gets a gradient that is not 0."""
        model = self.model().train()
        output = model(**self.batch())
        assert isinstance(output, SSLOutput) and output.loss.ndim == 0 and output.loss.isfinite()
        assert output.features.ndim == 2
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name

    def optimizer(self, model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)

    def test_learns(self):
        """Within `most_steps` the loss of other batches falls well below that of ignorance and below the untrained model's."""
        model = self.model().train()
        with torch.no_grad():  # queues and banks fill with features: what is drawn at random is easy to tell
            for step in range(10):
                model(**self.batch(seed=step))
        untrained = self._held_out_loss(model)
        optimizer, losses = self.optimizer(model), []
        for step in range(self.most_steps):
            batch = {k: v for k, v in self.batch(seed=step).items() if k not in self.random_arguments}
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.after_step((step + 1) / self.most_steps)
            if step % 20 == 19:
                losses.append(self._held_out_loss(model))
                if losses[-1] < 0.8 * min(self.chance_loss, untrained):
                    return
        pytest.fail(f"loss of ignorance {self.chance_loss:.3f}, untrained {untrained:.3f}, every 20 steps {losses}")

    @torch.no_grad()
    def _held_out_loss(self, model):
        """The mean over four batches, in training mode, of a copy: statistics and queues of the model stay."""
        model = copy.deepcopy(model)
        return np.mean([model(**self.batch(seed=1000 + number)).loss.item() for number in range(4)])

    def test_teachers_follow(self):
        """What no gradient moves is named in `fixed`, or follows: equal at the start, moved by `after_step` alone, and not
        all the way."""
        model = self.model().train()
        followers = {
            f"{teacher}.{name}": (parameter, model.get_submodule(student).get_parameter(name))
            for teacher, student in self.teachers.items()
            for name, parameter in model.get_submodule(teacher).named_parameters()
        }
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == followers.keys() | {name for name in frozen if name.startswith(tuple(self.fixed))}, (
            "neither in `teachers` nor in `fixed`"
        )
        before = {name: parameter.clone() for name, parameter in model.named_parameters() if name in frozen}
        for name, (teacher, student) in followers.items():
            assert torch.equal(teacher, student), name
            student.data.add_(1.0)
        model(**self.batch()).loss.backward()
        for name, parameter in before.items():
            assert torch.equal(model.get_parameter(name), parameter), f"{name} is moved by `forward`"
        model.after_step(0.5)
        for name, parameter in before.items():
            now = model.get_parameter(name)
            if name in followers:
                way = now - parameter  # of 1
                assert (way > 0).all() and (way < 1).all(), f"{name} does not follow"
            else:
                assert torch.equal(now, parameter), name

    def test_two_processes_equal_one(self, checkpointing=False):
        """Contract C2: losses, gradients, weights and buffers of 2 processes x B are those of 1 process x 2 B."""
        losses, values = two_steps(type(self), 1)
        for losses_2, values_2 in on_pair(two_steps, type(self), 2, checkpointing):
            assert losses_2 == pytest.approx(losses, rel=self.tolerance)
            for name, value in values.items():
                assert np.abs(values_2[name] - value).max() <= self.tolerance * np.abs(value).max() + self.floor, name

    def test_activation_checkpointing_changes_nothing(self):
        """Losses, gradients and weights are bitwise the same, and layers are computed twice."""
        model, calls = self.model().train(), []
        assert model.supports_gradient_checkpointing == type(model).supports_gradient_checkpointing == self.has_blocks
        if not self.has_blocks:
            with pytest.raises(ValueError, match="has no blocks to compute twice"):
                checkpoint_activations(model)
            return
        checkpoint_activations(model)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.register_forward_hook(lambda *_: calls.append(1))
        loss = model(**self.batch()).loss
        once = len(calls)
        loss.backward()
        assert len(calls) > once  # some were computed a second time

        older = self.model().train()
        older._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=True))
        if self.takes_reentrant_checkpoints:
            older(**self.batch()).loss.backward()
            assert all(p.grad is not None for p in older.parameters() if p.requires_grad)
        else:
            with pytest.raises(RuntimeError, match="you can either set use_reentrant=False"):
                older(**self.batch())

        (losses, values), (plain_losses, plain) = (two_steps(type(self), 1, twice) for twice in (True, False))
        assert losses == plain_losses
        for name, value in values.items():
            assert np.array_equal(value, plain[name]), name

    def test_same_draw_same_loss(self):
        """With the random draws handed in, the loss is bitwise the same."""
        model = self.model().eval()
        assert torch.equal(model(**self.batch()).loss, model(**self.batch()).loss)

    def test_eval_forward_changes_nothing(self):
        """Weights, statistics, queues and memories stay as they are."""
        model = self.model().eval()
        before = copy.deepcopy(everything(model))
        model(**self.batch())
        for name, value in everything(model).items():
            assert torch.equal(value, before[name]), name

    def test_embed_does_not_depend_on_the_batch(self):
        """A sample has the same features alone and in a batch, each time."""
        model = self.model().eval()
        inputs = self.inputs()
        together, alone = model.embed(**inputs), model.embed(**{name: value[:1] for name, value in inputs.items()})
        assert together.shape[0] == len(inputs[model.main_input_name]) and together.ndim == 2
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(together, model.embed(**inputs))

    def test_save_and_load(self, tmp_path):
        """After two steps, so that a memory that is not saved is not as it is in any new model."""
        model = train_two_steps(self, self.model().train())
        model.eval().save_pretrained(tmp_path)
        for auto in (AutoModelForPreTraining, AutoModel):
            loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is self.model_class
            assert not any(report.values()), report
            for name, value in everything(model).items():
                assert torch.equal(value, everything(loaded)[name]), name
            for (name, one), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
                assert one.requires_grad == other.requires_grad, name
            assert torch.equal(loaded(**self.batch()).loss, model(**self.batch()).loss)
        losses = [network.train()(**self.batch()).loss for network in (loaded, model)]  # what only training looks at
        assert torch.equal(*losses)

    def test_arguments_of_transformers(self, tmp_path):
        """return_dict, output_hidden_states, dtype: as any model of transformers takes them."""
        model = self.model().eval()
        output = model(**self.batch())
        assert output.hidden_states is None
        as_tuple = model(**self.batch(), return_dict=False)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.loss) and len(as_tuple) == len(output)
        if self.has_hidden_states:
            hidden = model(**self.batch(), output_hidden_states=True).hidden_states
            assert len(hidden) > 0 and all(isinstance(layer, torch.Tensor) for layer in hidden)
            model.config.output_hidden_states = True
            assert len(model(**self.batch()).hidden_states) == len(hidden)
            model.config.output_hidden_states = False
        model.save_pretrained(tmp_path)
        half = self.model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        for cast in (lambda x: x, lambda x: x.bfloat16() if x.is_floating_point() else x):
            loss = half(**{name: cast(value) for name, value in self.batch().items()}).loss
            loss.backward()
            torch.testing.assert_close(loss.float(), model.train()(**self.batch()).loss, rtol=0.1, atol=0.1)
        assert {parameter.dtype for parameter in half.export_encoder().parameters()} == {torch.float32}

    def test_weights_missing_from_a_file_are_drawn_not_garbage(self, tmp_path):
        """transformers builds on the meta device: what no file fills must be filled by `_init_weights`, as in a new model.

        Every key is left out, with as many others in one file as do not disturb it (`antichains`).
        """
        faults = drawn_otherwise(self.model().eval(), tmp_path)
        assert not faults, "\n".join(faults)

    def test_released_encoder_is_native(self, tmp_path):
        """Without hf_ssl, AutoModel loads it: no missing or unexpected key, and its features are those of `embed`."""
        model = self.model().eval()
        model.export_encoder().save_pretrained(tmp_path)
        inputs = self.inputs()
        torch.save({"inputs": inputs, "features": model.embed(**inputs).detach()}, tmp_path / "expected.pt")
        program = (
            "import torch\n"
            "from transformers import AutoModel\n"
            f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
            f"arguments = dict(trust_remote_code={self.brings_its_code}, output_loading_info=True)\n"
            f"model, report = AutoModel.from_pretrained({str(tmp_path)!r}, **arguments)\n"
            f"assert {self.brings_its_code} or type(model).__module__.startswith('transformers.models.'), type(model)\n"
            f"report['unexpected_keys'] = {{k for k in report['unexpected_keys'] if not k.startswith({self.released_heads})}}\n"
            "assert not any(report.values()), report\n"
            "inputs = expected['inputs']\n"
            f"output = {self.released_call}\n"
            f"features = {self.released_features}\n"
            "torch.testing.assert_close(features, expected['features'], rtol=0, atol=1e-6)\n"
        )
        run_plain(program)


def everything(model):
    """All tensors by name: weights and buffers, those too that are not saved."""
    return dict(model.named_buffers()) | model.state_dict()


def drawn_otherwise(model, folder):
    """Of the weights of a model, each left out of its file: those that are then not as in a new model, and how, in words."""
    model_class, state, faults = type(model), model.state_dict(), []
    torch.manual_seed(1)
    fresh, other = (model_class(copy.deepcopy(model.config)).state_dict() for _ in range(2))
    for missing in antichains(model):
        kept = {k: v for k, v in state.items() if k not in missing}
        model.save_pretrained(folder, state_dict=kept or {"nothing": torch.zeros(1)})
        torch.manual_seed(0)
        with filled_with_nan():
            loaded = model_class.from_pretrained(folder).state_dict()
        for name in missing:
            constant = torch.equal(fresh[name], other[name])
            faults += [f"{name}: {fault}" for fault in differences(loaded[name], fresh[name], constant)]
        faults += [
            f"{name}: is changed"
            for name in state
            if name not in missing and not torch.equal(loaded[name], state[name])
        ]
    return faults


def antichains(model):
    """All keys of `state_dict`, in sets of which no two belong to the same module or to one that lies within the other's.

    transformers draws a module anew if the file lacks something in it or below it. So what becomes of a key of such a set
    when they are all missing is what becomes of it when it is missing alone. Names of one tensor count as one key.
    """
    names, sets = {}, []
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    for aliases in names.values():
        modules = [name.split(".")[:-1] for name in aliases]
        for chosen in sets:
            taken = [name.split(".")[:-1] for name in chosen]
            if not any(one[: len(other)] == other[: len(one)] for one in modules for other in taken):
                chosen += aliases
                break
        else:
            sets.append(aliases)
    return sets


@contextmanager
def filled_with_nan():
    """Within it new memory holds NaN and the largest integers: what is not initialised shows each time."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # of which `fill_uninitialized_memory` is a part
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def differences(found, expected, constant):
    """What tells a loaded tensor from that of a new model, in words. Where it is random, mean and standard deviation must
    agree within five standard errors of the difference between two samples of this size."""
    if not found.isfinite().all():
        return ["is not initialised"]
    if constant:
        return [] if torch.equal(found, expected) else ["is a constant in a new model, and another one here"]
    found, expected = found.double(), expected.double()
    mean, other_mean = found.mean().item(), expected.mean().item()
    spread, other_spread = found.std(correction=0).item(), expected.std(correction=0).item()
    error, faults = 5 * found.numel() ** -0.5, []
    if abs(mean - other_mean) > 2**0.5 * error * other_spread:
        faults.append(f"has mean {mean:.3g}, in a new model {other_mean:.3g}")
    if spread == 0 or abs(spread - other_spread) > error * other_spread:
        faults.append(f"has standard deviation {spread:.3g}, in a new model {other_spread:.3g}")
    return faults


def train_two_steps(tester, model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):
        model(**tester.batch(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(step / 2)
    return model


def two_steps(tester, processes, checkpointing=False):
    """(losses of two steps; first the gradients, then all weights and buffers after them) on this process's part.

    `processes` of them are in a group already (`on_pair`)."""
    tester = tester()
    model, losses, values = tester.model().train(), [], {}
    if checkpointing:
        checkpoint_activations(model)
    core = model
    if processes > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in core.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):
        batch = tester.batch(seed=step)
        if processes > 1:
            batch = {name: value.chunk(processes)[torch.distributed.get_rank()] for name, value in batch.items()}
        loss = model(**batch).loss
        loss.backward()
        if step == 0:
            values |= {f"gradient of {name}": p.grad.clone() for name, p in core.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        core.after_step(step / 2)
        mean = loss.detach().clone()
        if processes > 1:
            torch.distributed.all_reduce(mean.div_(processes))
        losses.append(mean.item())
    return losses, {name: value.numpy() for name, value in (values | core.state_dict()).items()}


def find_tester(name):
    """The first MethodTester of a method in its test file."""
    found = vars(importlib.import_module(f"methods.test_{name}")).values()
    testers = [each for each in found if isinstance(each, type) and issubclass(each, MethodTester)]
    return next(each for each in testers if getattr(each, "model_class", None) is METHODS[name])()
