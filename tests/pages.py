"""What a page prints as a user's input, and how a test makes it small: commands, blocks of Python, cuts.

A page is a Markdown file, whose ```bash and ```python blocks count, or a Python file whose docstring has lines of examples.
The words of a command stay the user's; `cut` replaces sizes and adds further ones by the names of flags and config values, so
that it knows no method.
"""

import ast
import importlib
import re
import shlex
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from hf_ssl.cli.main import SCRIPTS, launch_flags
from hf_ssl.cli.parse import checked
from hf_ssl.methods import METHODS

FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
EXAMPLE = re.compile(r"(hf-ssl|python|torchrun|accelerate launch|[A-Z_]+=\S+ hf-ssl) \S")
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
JOINTS = ("&&", "||", ";", "|", "&")
WRITTEN = re.compile(r"\b(?:outputs|runs)/[\w.-]*\w")  # what commands leave, wherever it is named


@dataclass(frozen=True)
class Command:
    """words: as the shell gives them, but that globs without quotes stand in `globs`; environment: of assignments before them."""

    page: str
    line: int
    words: tuple[str, ...]
    environment: tuple[str, ...] = ()
    globs: frozenset[str] = frozenset()

    def __str__(self):
        return f"{self.page}:{self.line}: {shlex.join([*self.environment, *self.words])}"

    @property
    def key(self):
        return self.words, self.environment


@dataclass
class Page:
    name: str
    commands: list[Command] = field(default_factory=list)
    python: list[tuple[int, str]] = field(default_factory=list)  # (line, code)
    files: dict[str, str] = field(default_factory=dict)  # blocks with title="name", which commands read by that name


def read_page(path, root):
    path = Path(path)
    text, page = path.read_text(), Page(path.relative_to(root).as_posix())
    if path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text), clean=True) or ""
        for line, example in _lines(docstring, 1):
            if EXAMPLE.match(example):
                page.commands += _commands(page.name, line, example)
        return page
    for block in FENCE.finditer(text):
        _, language, rest, code = block.groups()
        first, code = text.count("\n", 0, block.start()) + 2, textwrap.dedent(code)
        if title := TITLE.search(rest):
            page.files[title[1]] = code
        if language in ("bash", "sh", "shell", "console"):
            for line, command in _lines(code, first):
                page.commands += _commands(page.name, line, command)
        elif language in ("python", "py"):
            page.python.append((first, code))
    return page


def _lines(text, first):
    """(number, line) of those that are not empty, continued ones joined."""
    joined = ""
    for number, line in enumerate(text.splitlines(), first):
        start = start if joined else number  # noqa: F821
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1] + " "
        else:
            if line := (joined + line).strip().removeprefix("$ "):
                yield start, line
            joined = ""


def _commands(page, number, line):
    """The commands of one line, which has none if it is a comment."""
    words = shlex.split(line, comments=True)
    quoted = {word for word in words if f'"{word}"' in line or f"'{word}'" in line}
    while words:
        end = next((i for i, word in enumerate(words) if word in JOINTS), len(words))
        part, words = words[:end], words[end + 1 :]
        count = next((i for i, word in enumerate(part) if not ASSIGNMENT.fullmatch(word)), len(part))
        globs = frozenset(word for word in part if set("*?[") & set(word) and word not in quoted)
        if count < len(part):
            yield Command(page, number, tuple(part[count:]), tuple(part[:count]), globs)


# -- what a command runs ----------------------------------------------------------------------------------------------


@dataclass
class Program:
    """start: the words that name what is run, `script` (its name in scripts/, or a subcommand that has none), its arguments."""

    start: list[str]
    script: str
    arguments: list[str]
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def method(self):
        return self.script.removeprefix("pretrain_") if self.script.startswith("pretrain_") else None

    @property
    def words(self):
        return [*self.start, *self.arguments]


def program(words):
    """What the words run, without its launcher; None where it is nothing of ours."""
    launched = _launched(words)
    if launched is not None:
        inner, count, environment = launched
        found = program(inner)
        if found is not None:
            found.processes, found.environment = count, found.environment | environment
        return found
    if words[0] == "hf-ssl":
        start, rest = ["hf-ssl"], list(words[1:])
    elif words[:3] == ["python", "-m", "hf_ssl"]:
        start, rest = words[:3], list(words[3:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("hf_ssl.scripts."):
        return Program(words[:3], words[2].removeprefix("hf_ssl.scripts."), list(words[3:]))
    elif words[0] == "python" and words[1].startswith("scripts/"):
        return Program(words[:2], Path(words[1]).stem, list(words[2:]))
    else:
        return None
    command = rest.pop(0) if rest else "--help"
    if command != "pretrain" or not rest:
        return Program([*start, command], SCRIPTS.get(command, (command,))[0], rest)
    found = Program([*start, command, rest[0]], f"pretrain_{rest[0]}", rest[1:])
    launch, arguments = launch_flags(found.arguments)  # which refuses those that lack a value
    if launch.keys() - {"mixed_precision", "cpu"}:
        settings = {name: values[0] for name, values in launch.items() if values}
        if "config_file" in settings:
            settings = vars(load_config_from_file(settings["config_file"])) | settings
        count, found.environment = _processes(settings.get("num_processes", 1), settings.get("mixed_precision"))
        found.arguments, found.processes = arguments, count
    return found


def _launched(words):
    """(command, processes, environment) of what torchrun or accelerate starts; None of anything else."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser as parser

        args = parser().parse_args(words[1:])
        count, environment = _processes(args.nproc_per_node, None)
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        args = launch_command_parser().parse_args(words[2:])
        count, environment = _processes(args.num_processes or 1, args.mixed_precision)
    else:
        return None
    return ["python", *["-m"] * args.module, args.training_script, *args.training_script_args], count, environment


def _processes(count, precision):
    """At most two, and the environment that a launcher gives them."""
    return min(2, int(count)), {"ACCELERATE_MIXED_PRECISION": precision} if precision else {}


# -- cuts -------------------------------------------------------------------------------------------------------------

MOST = {  # of a flag that a command gives, or may give: its largest value in a test
    "--max_steps": 2, "--per_device_train_batch_size": 4, "--vocab_size": 600, "--dataloader_num_workers": 0, "--save_steps": 0,
    "--unlabelled_per_label": 1,
}  # fmt: skip
TABLE = MOST | {"--per_device_train_batch_size": 8}  # which draws 8 windows of a speaker
MOST_IF_GIVEN = {"--gradient_accumulation_steps": 2, "--micro_batch_size": 2, "--max_samples": 24, "--labels": 12}
READ_BY_THE_EVALUATION = ("--label_column", "--test_split", "--test_fraction", "--group_column")
KEPT_SIZES = (
    "embedding_size",  # a ResNet is known by it
    "image_size",
    "patch_size",
    "vocab_size",
    "queue_size",
)  # of which images and vocabularies have rules of their own
# in pixels, of what a pretext task cuts out of images of SMALL_IMAGE; and clusters of few images
TASK_SIZES = {"tile_size": 8, "patch_size": 8, "gap": 2, "jitter": 1, "smallest_size": 3, "num_clusters": 3}
LARGEST_SIZE, SMALL_SIZE, SMALL_IMAGE, LAYERS, HEADS = 32, 16, 32, 1, 2


def value(arguments, flag):
    """Of a flag in `arguments`; None if it is not there."""
    for i, word in enumerate(arguments):
        name, equals, given = word.partition("=")
        if name.replace("-", "_") == flag.replace("-", "_"):
            return given if equals else "".join(arguments[i + 1 : i + 2])
    return None


def put(arguments, flag, new):
    """`arguments` with this value of the flag; None: without the flag."""
    found = value(arguments, flag)
    kept = list(arguments)
    if found is not None:
        i = next(
            i for i, word in enumerate(kept) if word.partition("=")[0].replace("-", "_") == flag.replace("-", "_")
        )
        del kept[i : i + 1 + ("=" not in kept[i])]
    return kept if new is None else [*kept, flag, str(new)]


def cut(program, known):
    """The arguments of a program, made small. known: the flags of its script."""
    arguments = list(program.arguments)
    if "--help" in arguments:
        return arguments
    if program.method:
        return cut_pretraining(program.method, arguments, known)
    if program.script == "benchmark":
        return cut_benchmark(arguments)
    trains = value(arguments, "--max_steps") is not None  # and hands its other flags on
    most = MOST_IF_GIVEN | (MOST if trains else {})
    arguments = at_most(arguments, most)
    if trains:  # methods as they are, one of which norms groups of 32
        arguments = own_rows(put(arguments, "--per_device_train_batch_size", 32))
    if program.script == "evaluate":
        arguments = at_most(arguments, MOST_IF_GIVEN, {"--max_samples"})
        arguments = put(arguments, "--fine_tune_epochs", 1)
    return arguments


def at_most(arguments, most, added=()):
    """With no larger values of the flags of `most`; those of `added` are there in any case."""
    for flag, largest in most.items():
        given = value(arguments, flag)
        if given is not None or flag in added:
            arguments = put(arguments, flag, min(int(given or largest), largest))
    return arguments


def own_rows(arguments):
    """Few of the embedded sample, if no other data are named."""
    if value(arguments, "--dataset_name") is None and value(arguments, "--train_split") is None:
        return put(arguments, "--train_split", "train[:64]")
    return arguments


def cut_pretraining(method, arguments, known):
    arguments = at_most(arguments, MOST | MOST_IF_GIVEN, known & MOST.keys())
    if "--max_steps" in known:
        arguments = own_rows(put(arguments, "--num_train_epochs", None))
    else:
        arguments = put(arguments, "--num_train_epochs", 0.01)
    if group := value(arguments, "--windows_per_speaker"):
        arguments = put(arguments, "--per_device_train_batch_size", group)
    if value(arguments, "--hub_strategy") == "every_save":
        arguments = put(arguments, "--save_steps", 1)
    if value(arguments, "--eval_protocols") is None and not any(value(arguments, f) for f in READ_BY_THE_EVALUATION):
        arguments = put(arguments, "--eval_protocols", "none")
    config = preset_config(method, value(arguments, "--backbone"))
    if config is not None:
        if "--image_size" in known and not _sees_one_size(config):
            arguments = put(arguments, "--image_size", SMALL_IMAGE)
        replaced = [f".{part}_config." for part in ("vision", "text") if value(arguments, f"--{part}_tower")]
        sizes = [f"{name}={new}" for name, new in smaller(config) if not any(part in name for part in replaced)]
        if small := ",".join(sizes):
            arguments = ["--config_overrides", small, *arguments]  # before the user's, which so hold
    return arguments


def cut_benchmark(arguments):
    """The first size, one round; what follows --flags goes to a script of pretraining, and is cut as its arguments are."""
    from hf_ssl.scripts import benchmark

    name, rest = arguments[0], arguments[1:]
    module, flags = getattr(benchmark, name), []
    if "--flags" in rest:
        place = rest.index("--flags")
        rest, flags = rest[:place], rest[place + 1 :]
        if value(flags, "--dataset_name") is None and value(flags, "--test_split") is None:
            flags = put(flags, "--test_split", "test[:32]")  # these runs are evaluated
        flags = [
            "--flags",
            *at_most(own_rows(flags), TABLE, TABLE.keys() - {"--vocab_size", "--unlabelled_per_label"}),
        ]  # sizes are the benchmark's own
    if (size := value(rest, "--size")) in getattr(module, "SIZES", ()):
        rest = put(rest, "--size", next(iter(module.SIZES)))
    elif size:
        return arguments  # which the script refuses
    rest = [*rest, "--rounds", "1"]
    if value(rest, "--part") == "quality":
        rest += ["--seeds", "1", "--epochs", "0.1"]
    return [name, *rest, *flags]


def preset_config(method, backbone):
    """What a run begins anew with: a preset, or any encoder by its type; None where it goes on from a checkpoint."""
    presets, config_class = presets_of(method), METHODS[method].config_class
    backbone = backbone or next(iter(presets))
    if backbone in presets:
        return config_class(**presets[backbone].config)
    if backbone in CONFIG_MAPPING:
        return checked(lambda: config_class(backbone_config=AutoConfig.for_model(backbone)))
    return None


def presets_of(method):
    return importlib.import_module(f"hf_ssl.scripts.pretrain_{method}").PRESETS


def smaller(config, prefix=""):
    """(name, number) of what makes a small network, by the usual names of sizes; an image has two patches a side."""
    for name, old in vars(config).items():
        if isinstance(old, PreTrainedConfig):
            yield from smaller(old, f"{prefix}{name}.")
        elif type(old) is int:
            new = old
            if not prefix and name in TASK_SIZES:
                new = TASK_SIZES[name]
            elif name.endswith("_group_size"):  # of samples of a batch
                new = MOST["--per_device_train_batch_size"]
            elif name.endswith(("_size", "_dim")) and old > LARGEST_SIZE and name not in KEPT_SIZES:
                new = SMALL_SIZE
            elif name.endswith("num_hidden_layers"):
                new = LAYERS
            elif name.endswith("num_attention_heads"):
                new = HEADS
            elif name == "image_size" and isinstance(patch := getattr(config, "patch_size", None), int):
                # which is what convolutions make one feature of, rounded up to whole patches
                new = -(-max(2 * patch, SMALL_IMAGE) // patch) * patch
            if new < old:
                yield f"{prefix}{name}", new


def _sees_one_size(config):
    encoder = config.backbone_config
    return bool(getattr(getattr(encoder, "vision_config", encoder), "image_size", None))


def output_dir(program):
    """Where a program that makes a release leaves it; None of others."""
    if "--help" in program.arguments or not (
        program.method or program.script in ("convert_checkpoint", "expand_vocabulary")
    ):
        return None
    if program.method is None or (given := value(program.arguments, "--output_dir")):
        return value(program.arguments, "--output_dir")
    presets = presets_of(program.method)
    preset = presets.get(value(program.arguments, "--backbone")) or list(presets.values())[-1]
    if value(program.arguments, "--backbone") is None:
        preset = next(iter(presets.values()))
    return given or preset.training["output_dir"]
