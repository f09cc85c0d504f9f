"""The pages that nobody writes: one for each method, their index, the papers, the tests, and what each test shows.

`pages()` gives {file under docs/: Markdown}. As an extension of Sphinx this module writes them before Sphinx reads. Everything
comes from the code: docstrings, presets, configs, `forward`, the card's template, recorded results, and the names of the tests.
"""

import ast
import importlib
import inspect
import itertools
import re
import textwrap
from dataclasses import fields
from functools import cache
from os.path import relpath
from pathlib import Path

from hf_ssl.cli import information
from hf_ssl.evaluation import EVALUATIONS, PAIRS, modality_of, results_table
from hf_ssl.evaluation.conditions import SAMPLES
from hf_ssl.hub.card import ALT_TEXTS, CARDS, card_blocks
from hf_ssl.methods import METHODS
from hf_ssl.methods._base import LOGGED_BY_THE_LOOP
from hf_ssl.training.checkpoints import full_config

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TESTS = ROOT / "tests"
CODE_WIDTH = 86
TESTER = TESTS / "methods/tester.py"
COMPARED = r"equal|original|official|transformers$|as_in_the"  # in names of tests that compare with another's numbers
REFUSED = r"refused|impossible|asked_for"
GUIDES = {"image": "images", "text": "text", "audio": "speech", PAIRS: "pairs"}
OF_THE_LOOP = {  # fragment -> what the names of its tests have
    "resume": r"killed|kills|taken_up|goes_on|go_on|checkpoint|resume|a_signal_saves",
    "processes": r"two_processes",
    "collapse": r"collapse|not_finite_stops|healthy",
    "input": r"refused|broken|damaged|bad_|is_named|are_named|one_sentence|one_is_named|impossible",
}


def pages():
    """{path under docs/: text}."""
    found = {"methods/index.md": methods_index(), "papers.md": papers_page()}
    found |= {f"methods/{name}.md": method_page(name) for name in METHODS}
    found |= {f"cards/{name}.md": text for name, text in examples_of_cards().items()}
    found |= {f"_fragments/{name}.md": text for name, text in fragments().items()}
    sources = [*(ROOT / "hf_ssl/methods").glob("*.py"), *TESTS.rglob("test_*.py"), TESTER]
    return found | {f"{source_place(path)}": source_page(path) for path in sorted(sources)}


# -- methods --------------------------------------------------------------------------------------------------------


def method_page(name):
    model = METHODS[name]
    title, idea, rest = docstring_of(name)
    presets = presets_of(name)
    default, recipe = next(iter(presets.items()))
    config = information.preset_config(model, recipe)
    card = card_blocks(
        name, config=full_config(config), arguments=recipe.training, path=recipe.training["output_dir"], shipped=True,
        facts={}, last={}, pictures=(), settings=(),
    )  # fmt: skip
    parts = [
        f"# {title}",
        f"`hf-ssl pretrain {name}`: {idea}",
        rest,
        pictures(name),
        "## Run it",
        fenced("bash", examples(name)),
        f"`hf-ssl pretrain {name} --help` lists every flag with its default. {guide_of(model)}",
        "## Objective",
        card["objective"],
        f"Numbers are those of the default preset, `{default}`.",
        f"In code, the `forward` of [{name}.py]({source_link(f'hf_ssl/methods/{name}.py')}):",
        fenced("python", textwrap.dedent(inspect.getsource(model.forward))),
        "## Presets",
        preset_table(name, presets),
        "The first is what you get without `--backbone`.",
        "## Settings",
        "What the model is; `--config_overrides name=value,...` changes it.",
        setting_table(model.config_class),
        "## What a run shows",
        logged(model),
        "## Results",
        recorded_results(name, card["measures"]),
        "## Load the release",
        f"What a run leaves in `{recipe.training['output_dir']}`:",
        card["usage"],
        card.get("more", ""),
        "## Limits",
        card["limits"],
        "## Deviations from the paper",
        card["notes"],
        "## Tests",
        own_tests(name),
    ]
    if name in examples_of_cards():
        parts += ["## Model card", f"[The card that a default run has left](../cards/{name}.md)."]
    heading = None
    kept = []
    for part in filter(None, (part.strip() for part in parts)):
        if part.startswith("## "):  # shown only if something stands below
            heading = part
        else:
            kept += [heading, part] if heading else [part]
            heading = None
    return "\n\n".join(kept) + "\n"


def examples_of_cards():
    """{method: a card that a run has left}, as pages."""
    found = {}
    for path in sorted((CARDS / "examples").glob("*.md")):
        pictures = relpath(path.parent / "images", DOCS / "cards")
        found[path.stem] = f"---\norphan: true\n---\n\n{path.read_text().replace('](images/', f']({pictures}/')}"
    return found


def docstring_of(name):
    """(name of the method, its idea, the rest as Markdown)."""
    text = inspect.getdoc(importlib.import_module(f"hf_ssl.methods.{name}"))
    first, _, rest = text.partition("\n\n")
    title, _, idea = first.partition(": ")
    return title, idea[0].upper() + idea[1:], linked(rest)


def linked(text):
    """With each bare address in angle brackets, which makes a link of it."""
    return re.sub(r"(?<![<(])https?://[^\s)]+?(?=[.,;:)]*(\s|$))", r"<\g<0>>", text)


def script_of(name):
    return importlib.import_module(f"hf_ssl.scripts.pretrain_{name}")


def presets_of(name):
    return script_of(name).PRESETS


def examples(name):
    """The commands of the script's docstring, in lines that fit a page, comments above their commands."""
    lines = []
    for command in re.sub(r"\s*\\\n\s*", " ", script_of(name).__doc__.partition("\n\n")[2].strip()).splitlines():
        command, _, comment = re.sub(r" {2,}#", "#", command).partition("#")
        flags = re.split(r" (?=--)", command.strip())
        lines += [f"# {comment.strip()}"] if comment else []
        for flag in flags:
            if lines and flag is not flags[0] and len(lines[-1]) + len(flag) < CODE_WIDTH:
                lines[-1] += f" {flag}"
            elif flag is flags[0]:
                lines.append(flag)
            else:
                lines[-1] += " \\"
                lines.append(f"    {flag}")
    return "\n".join(lines)


def pictures(name):
    """Those of the card in model_cards/examples, but for its loss."""
    found = sorted((CARDS / "examples/images").glob(f"{name}_*.png"))
    shown = [(path, kind) for path in found if (kind := path.stem.removeprefix(f"{name}_")) != "loss"]
    return "\n\n".join(f"![{ALT_TEXTS.get(kind, kind)}]({relpath(path, DOCS / 'methods')})" for path, kind in shown)


def guide_of(model):
    name = "few_labels" if model.learns_from_labels else GUIDES[modality_of(model)]
    return f"Your own data: [the guide](../guides/{name}.md). Several devices: [scale out](../guides/scale.md)."


def preset_table(name, presets):
    proven = information.recorded(name).get("preset")
    rows = []
    for preset, recipe in presets.items():
        proof = "results below" if preset == proven else "no run recorded"
        rows.append((f"`{preset}`", size(name, preset), recipe.purpose, proof))
    return table(("preset", "parameters", "for", "evidence"), rows)


@cache
def size(name, preset):
    """The parameters of a preset, in words."""
    count = information.parameters(METHODS[name], presets_of(name)[preset])
    return f"{count / 1e6:.1f} M" if count > 1e5 else "by words"


def setting_table(config_class):
    """The fields of a config: defaults, and what the docstring says of each, `name, name: text`."""
    own = [field.name for field in fields(config_class) if field.name in config_class.__annotations__]
    text = " ".join(inspect.getdoc(config_class).split())
    one = "|".join(sorted(own, key=len, reverse=True))
    said = {}
    marks = list(re.finditer(rf"(?<!`)\b((?:{one})(?:, (?:{one}))*): ", text))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        until = following.start() if following else len(text)
        said |= dict.fromkeys(mark[1].split(", "), text[mark.end() : until].strip())
    defaults = config_class()
    rows = []
    for name in own:
        value = getattr(defaults, name)
        shown = value.model_type if name.endswith("_config") else value
        rows.append((f"`{name}`", f"`{shown}`", said.get(name, "")))
    before = text[: marks[0].start()].strip() if marks else text
    return f"{before}\n\n{table(('setting', 'default', 'what it is'), rows)}"


def logged(model):
    """What the log of a run has, from the loop's own names and those that `forward` gives as metrics."""
    own = metrics_of(model)
    of_views = ("projection_std", "alignment", "uniformity")
    compared = "projections_2" in inspect.getsource(model.forward)
    names = [
        name for name in LOGGED_BY_THE_LOOP if name != "samples_per_second" and (compared or name not in of_views)
    ]
    words = f"Each entry of the log has {', '.join(f'`{each}`' for each in names)} and the speed"
    words += f"; of this method also {', '.join(f'`{each}`' for each in own)}." if own else "."
    return words + " A representation that collapses is warned of by name: see [correctness](../correctness.md)."


METRICS_OF_PARTS = {  # by the function that gives them
    "label_metrics": ["supervised", "accuracy", "chance"],
    "information_bound": ["nats", "most_nats"],
    "own_row_loss": ["nats", "most_nats", "recognized", "chance"],
}


def metrics_of(model):
    """The names in `metrics={...}` of a method's `forward`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model.forward)))
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "metrics"]
    given += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(getattr(name, "id", "") == "metrics" for target in node.targets for name in ast.walk(target))
    ]
    given += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") == "metrics"
    ]
    names = []
    for node in itertools.chain.from_iterable(map(ast.walk, given)):
        if isinstance(node, ast.Dict):
            names += [key.value for key in node.keys]
        elif isinstance(node, ast.Call):
            names += METRICS_OF_PARTS.get(getattr(node.func, "id", ""), [])
    return names


def recorded_results(name, measures):
    """The table of the default runs of all seeds, and what such a run took."""
    kept = information.recorded(name)
    if not kept:
        return "Nobody has recorded a run yet."
    runs = kept["runs"]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    parts = [
        f"Default runs of seeds {seeds}, on {SAMPLES[modality_of(METHODS[name])][1]}; test part, in percent where no unit is "
        f"named{'' if METHODS[name].learns_from_labels else ', encoder frozen'}:",
        results_table(*({"results": run["results"], "metrics": kept["metrics"]} for run in runs)),
        measures,
    ]
    for run in runs[:1]:
        facts = run["run"]
        took = f"{facts['samples_seen']:,} {facts['unit']} in {facts['seconds'] / 60:.1f} minutes"
        parts.append(
            f"The run of seed {run['seed']} read {took}, on {facts['hardware']['name']}, in {facts['precision']}."
        )
    if older := [run for run in runs if "from" in run]:
        which = ", ".join(str(run["seed"]) for run in older)
        parts.append(f"The numbers of seeds {which} are those of {older[0]['from']}.")
    return "\n\n".join(filter(None, parts))


def methods_index():
    """The methods by what they read."""
    parts = [
        "# Methods",
        "Each is one file, one config, one `PreTrainedModel` and one command. The last column is the default run of seeds "
        "0 / 1 / 2: random initialisation → pretrained; of methods that learn from few labels, the labels alone → with "
        "unlabelled images.",
    ]
    for modality in EVALUATIONS:
        rows = []
        for name in [name for name, model in METHODS.items() if modality_of(model) == modality]:
            title, idea, _ = docstring_of(name)
            proof = "<br>".join(information.changes(name)[:2])
            rows.append((f"[{title}]({name}.md)<br>`{name}`", f"{idea}<br>{cited(name)}", proof))
        if rows:
            heading = modality[0].upper() + modality[1:]
            parts += [f"## {heading}", table(("method", "idea, papers", "proof"), rows)]
    entries = "\n".join(METHODS)
    return "\n\n".join(parts) + f"\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


def cited(name):
    links = [f"[{label or f'arXiv:{number}'}]({link})" for label, link, number in information.papers(name)]
    return ", ".join(links)


def papers_page():
    """Paper by paper: the method that it is, and the command that trains it."""
    rows = []
    for name in METHODS:
        title = docstring_of(name)[0]
        for label, link, number in information.papers(name):
            rows.append((label or f"arXiv:{number}", f"[{number}]({link})", title, name))
    rows = [
        (label, link, f"[{title}](methods/{name}.md)", f"`hf-ssl pretrain {name}`")
        for label, link, title, name in sorted(rows, key=lambda row: (row[1], row[0]))
    ]
    words = "From the paper of the lecture to the command, in the order in which the papers appeared. `hf-ssl list` prints this"
    return f"# Papers\n\n{words} in a terminal.\n\n{table(('paper', 'arXiv', 'method', 'command'), rows)}\n"


# -- tests ----------------------------------------------------------------------------------------------------------


def source_place(path):
    """Where the page of a file of this repository stands, under docs/."""
    return f"source/{path.relative_to(ROOT).with_suffix('.md').as_posix()}"


def source_link(path, folder="methods"):
    return relpath(DOCS / source_place(ROOT / path), DOCS / folder)


def source_page(path):
    """A file as it stands, with a heading above each of its tests, so that they can be linked."""
    lines = path.read_text().splitlines()
    marks = [(0, None)] + [(line, name) for name, line in tests_in(path)]
    parts = [f"---\norphan: true\nnosearch: true\n---\n\n# {path.relative_to(ROOT).as_posix()}"]
    for (start, name), (stop, _) in zip(marks, [*marks[1:], (len(lines), None)], strict=True):
        if name:
            parts.append(f"## {name}")
        code = textwrap.dedent("\n".join(lines[start:stop])).strip("\n")
        if code.strip():
            parts.append(fenced("python", code))
    return "\n\n".join(parts) + "\n"


def tests_in(path):
    """(name, its first line, counted from 0) of each test function of a file, methods of test classes too, as they stand."""
    found = []
    for node in ast.parse(path.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        for each in inner:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_"):
                first = min([each.lineno, *(decorator.lineno for decorator in each.decorator_list)])
                found.append((each.name, first - 1))
    return found


def test_link(path, name, folder):
    words = name.removeprefix("test_").replace("_", " ")
    return f"[{words}]({relpath(DOCS / source_place(path), DOCS / folder)}#{name})"


def own_tests(name):
    path = TESTS / f"methods/test_{name}.py"
    links = [test_link(path, test, "methods") for test, _ in tests_in(path)]
    every = f"[every method passes]({relpath(DOCS / source_place(TESTER), DOCS / 'methods')})"
    return f"Beside the checks that {every}: " + "; ".join(links) + "."


def fragments():
    """What correctness.md includes, with links from docs/, and guides/scale.md: {name: Markdown}."""
    rows = []
    for name in METHODS:
        path = TESTS / f"methods/test_{name}.py"
        tests = [test for test, _ in tests_in(path)]
        compared = [
            test_link(path, test, "") for test in tests if re.search(COMPARED, test) and "processes" not in test
        ]
        refused = [test_link(path, test, "") for test in tests if re.search(REFUSED, test)]
        rows.append((f"[{docstring_of(name)[0]}](methods/{name}.md)", "<br>".join(compared), "<br>".join(refused)))
    parity = table(("method", "compared with", "refuses"), rows)
    checks = [(test_link(TESTER, test, ""), said_of(TESTER, test)) for test, _ in tests_in(TESTER)]
    found = {"parity": parity, "tester": table(("check", "what it asks"), checks)}
    found["presets"] = all_presets()
    files = sorted(TESTS.rglob("test_*.py"))
    for fragment, pattern in OF_THE_LOOP.items():
        lines = []
        for path in (path for path in files if path.parent.name != "methods"):
            links = [test_link(path, test, "") for test, _ in tests_in(path) if re.search(pattern, test)]
            if links:
                lines.append(f"- `{path.relative_to(ROOT).as_posix()}`: {'; '.join(links)}")
        found[fragment] = "\n".join(lines)
    return {name: text + "\n" for name, text in found.items()}


def all_presets():
    """Of all methods, with links from docs/guides/."""
    rows = []
    for name in METHODS:
        presets = presets_of(name)
        rows += [
            (f"[`{name}`](../methods/{name}.md)", f"`{key}`", size(name, key), each.purpose)
            for key, each in presets.items()
        ]
    return table(("method", "preset", "parameters", "for"), rows)


def said_of(path, test):
    """The first paragraph of a test's docstring."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    text = next(ast.get_docstring(node) for node in nodes if node.name == test) or ""
    return " ".join(text.partition("\n\n")[0].split())


# -- Markdown -------------------------------------------------------------------------------------------------------


def table(head, rows):
    lines = [head, ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(language, code):
    fence = "````" if "```" in code else "```"
    return f"{fence}{language}\n{code.strip(chr(10))}\n{fence}"


# -- Sphinx ---------------------------------------------------------------------------------------------------------


def write(app):
    """Write what has changed, and delete pages of what is gone."""
    found = pages()
    for folder in ("methods", "cards", "source", "_fragments"):
        for path in (DOCS / folder).rglob("*.md"):
            if path.relative_to(DOCS).as_posix() not in found:
                path.unlink()
    for place, text in found.items():
        path = DOCS / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def setup(app):
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
