"""A model as one graph of operations, of any batch size and text length: ONNX, or torch.export's .pt2."""

import inspect
import logging
import warnings
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn
from torch.export import Dim

from ...errors import InputError
from ...evaluation.encoders.images import load_encoder, processor_view
from ...evaluation.encoders.loading import DUAL_ENCODER_CONFIGS, MODALITIES, PAIRS, one_line

TOLERANCE = 1e-4
OUTPUTS = ("last_hidden_state", "pooler_output", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
LARGEST_PROTOBUF = 1.9e9  # bytes; the weights of larger ones lie in a file beside it
LENGTHS = {"text": (5, 7, 12), "audio": (5, 9, 14)}  # of the example and of two checks: tokens, or frames


def export_onnx(name, model, missing, folder):
    """model.onnx, with config.json beside it."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise InputError(f'format onnx needs the package {package}: pip install "hf_ssl[export]".')
    import onnxruntime

    graph, inputs = Graph(model, missing), Inputs(name, model)
    with _exporting(name, "onnx"):
        program, example = _program(graph, inputs)
        size = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
        file = torch.onnx.export(
            program, dynamo=True, verbose=False, output_names=list(example), dynamic_shapes=inputs.axes(str)
        )
        _free_lengths(file.model.graph.outputs, example, graph(**inputs.draw(3, 1)))
        file.save(folder / "model.onnx", external_data=size > LARGEST_PROTOBUF)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(values):
        results = session.run(None, {key: value.numpy() for key, value in values.items()})
        return {
            output.name: torch.from_numpy(each) for output, each in zip(session.get_outputs(), results, strict=True)
        }

    _compare(name, "onnxruntime", graph, run, inputs)
    model.config.save_pretrained(folder)
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")  # opset {file.model.opset_imports[""]}
outputs = session.run(None, {{{", ".join(f'"{each}": {each}' for each in inputs.names)}}})  # {", ".join(example)}"""


def export_torch(name, model, missing, folder):
    """model.pt2, with config.json beside it."""
    graph, inputs = Graph(model, missing), Inputs(name, model)
    with _exporting(name, "torch"):
        program, example = _program(graph, inputs)
        torch.export.save(program, folder / "model.pt2")
        loaded = torch.export.load(folder / "model.pt2").module()
    _compare(name, "torch.export", graph, lambda values: loaded(**values), inputs)
    model.config.save_pretrained(folder)
    return f"""\
import torch

model = torch.export.load("FOLDER/model.pt2").module()
outputs = model({", ".join(f"{each}={each}" for each in inputs.names)})  # a dict of {", ".join(example)}"""


def _program(graph, inputs):
    """(what torch.export makes of a graph, its example outputs)."""
    example = inputs.draw(2, 0)
    program = torch.export.export(graph, (), example, dynamic_shapes=inputs.axes(lambda name: Dim.DYNAMIC))
    return program, graph(**example)


class Graph(nn.Module):
    """A model whose tensors come in by name, and go out as a dict of OUTPUTS."""

    def __init__(self, model, missing):
        super().__init__()
        self.model = model
        # transformers would draw a pooler that no file has
        self.left_out = {"pooler_output"} if any("pooler" in key for key in missing) else set()
        self.eval()

    @torch.no_grad()
    def forward(self, input_ids=None, pixel_values=None, input_values=None, attention_mask=None, token_type_ids=None):
        inputs = {  # torch.export does not run what takes **inputs
            "input_ids": input_ids, "pixel_values": pixel_values, "input_values": input_values,
            "attention_mask": attention_mask, "token_type_ids": token_type_ids,
        }  # fmt: skip
        output = self.model(**{name: tensor for name, tensor in inputs.items() if tensor is not None})
        tensors = {name: output.get(name) for name in OUTPUTS if name not in self.left_out}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class Inputs:
    """Random inputs of a model, and which of their dimensions are free."""

    def __init__(self, name, model):
        self.config = model.config
        self.text = self.config.get_text_config()
        known = inspect.signature(model.forward).parameters
        if type(self.config) in DUAL_ENCODER_CONFIGS:
            self.reads, names = PAIRS, ["input_ids", "pixel_values", "attention_mask"]
        else:
            self.reads, names = MODALITIES.get(model.main_input_name), [model.main_input_name]
            if self.reads == "text":
                names.append("attention_mask")
        if self.reads is None or "decoder_input_ids" in known:
            raise InputError(
                f"'{name}' is a {type(model).__name__}, which reads {model.main_input_name}: expected an encoder of "
                f"{', '.join(MODALITIES)}."
            )
        if "input_ids" in names and getattr(self.text, "type_vocab_size", 1) > 1:
            names.append("token_type_ids")
        self.names = [each for each in names if each in known]
        if "pixel_values" in self.names:
            vision = getattr(self.config, "vision_config", self.config)
            size = getattr(vision, "image_size", None)
            if size is None:
                encoder = load_encoder(name)
                size = processor_view(encoder.processor, encoder.channels)["size"]
            self.pixels = (vision.num_channels, *(size if isinstance(size, list | tuple) else (size, size)))

    def draw(self, rows, number):
        """{name: tensor} of so many rows, and of the `number`-th of LENGTHS."""
        generator = torch.Generator().manual_seed(number)
        drawn = {}
        for name in self.names:
            if name == "pixel_values":
                drawn[name] = torch.randn(rows, *self.pixels, generator=generator)
            elif name == "input_values":
                length = LENGTHS["audio"][number] * getattr(self.config, "inputs_to_logits_ratio", 320)
                drawn[name] = torch.randn(rows, length, generator=generator)
            else:
                most = {"attention_mask": 2, "token_type_ids": self.text.type_vocab_size if "type" in name else 0}
                shape = (rows, LENGTHS["text"][number])
                drawn[name] = torch.randint(most.get(name, self.text.vocab_size), shape, generator=generator)
        if "attention_mask" in drawn:
            drawn["attention_mask"] = torch.ones_like(drawn["input_ids"])
            drawn["attention_mask"][0, -2:] = 0  # a shorter text
            drawn["input_ids"][0, -2:] = self.text.pad_token_id or 0
        return drawn

    def axes(self, dimension):
        """{name: {axis: dimension(its name)}} of the free ones. Images and texts of a pair come in batches of their own."""
        free = {}
        for name in self.names:
            batch = "batch" if self.reads != PAIRS else "images" if name == "pixel_values" else "texts"
            free[name] = {0: dimension(batch)}
            if name != "pixel_values":
                free[name][1] = dimension("length")
        return free


@contextmanager
def _exporting(name, format):
    """Without the libraries' notes on themselves; what they cannot trace is one sentence."""
    loggers = [logging.getLogger(each) for each in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # for what they cannot trace, the exporters raise whatever they run into
        raise InputError(
            f"'{name}' cannot be exported as {format}: {type(error).__name__}, {one_line(error.__cause__ or error)}."
        ) from error
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _free_lengths(values, example, longer):
    """The number of frames that a recurrent network gives is written down as the example's; it is as long as the input."""
    for value in values:
        shape, other = example[value.name].shape, longer[value.name].shape
        for axis, (one, another) in enumerate(zip(shape, other, strict=True)):
            if one != another and isinstance(value.shape[axis], int):
                value.shape[axis] = "frames"


def _compare(name, runtime, graph, run, inputs):
    """Raise InputError if a file gives anything else than the model, on two batches of other sizes and lengths."""
    for rows, number in ((1, 1), (3, 2)):
        values = inputs.draw(rows, number)
        expected = graph(**values)
        try:
            outputs = run(values)
        except Exception as error:  # of whatever kind the runtime has
            raise InputError(
                f"'{name}' was exported, but {runtime} does not run it on {rows} rows: {one_line(error)}."
            ) from error
        for key, tensor in expected.items():
            other = outputs[key]
            difference = (tensor - other).abs().max().item() if tensor.shape == other.shape else float("inf")
            if not difference <= TOLERANCE * max(1.0, tensor.abs().max().item()):
                raise InputError(
                    f"'{name}' was exported, but {runtime} gives another {key} than the model on {rows} rows: they differ by "
                    f"{difference:.2g}, expected at most {TOLERANCE:g}."
                )


__all__ = ["Inputs", "export_onnx", "export_torch"]
