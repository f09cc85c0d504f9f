"""The Hub over HTTP: round trips, faults at every call, what is published, what is refused, streams that go on.

All of it talks to tests/hub_server.py in the client's own protocol; nothing is replaced.
"""

import json
import os
import re
import resource
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hub_server import Fault, User
from huggingface_hub import ModelCard
from methods.tester import find_tester
from processes import launch, run_plain
from safetensors.torch import load_file
from test_scripts import run
from test_training import pretrain, same_weights
from transformers import AutoModel, AutoModelForPreTraining, BertTokenizer, Wav2Vec2FeatureExtractor

import hf_ssl
from hf_ssl.data import image_processor, load_split
from hf_ssl.data.words import word_tokenizer
from hf_ssl.errors import InputError
from hf_ssl.evaluation import PAIRS, modality_of
from hf_ssl.evaluation.conditions import SAMPLES
from hf_ssl.evaluation.run import METRICS
from hf_ssl.hub import transfer
from hf_ssl.hub.card import write_card
from hf_ssl.hub.release import push_save
from hf_ssl.hub.transfer import HubError, push_release, verify
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingArguments
from hf_ssl.training.checkpoints import RUN_FILE, full_config, write_json
from hf_ssl.training.loop import TrainingRun
from hf_ssl.training.records import describe_run, public_run
from hf_ssl.training.run_folder import claim_output_dir, claimed

sys.path.insert(0, str(Path(__file__).parent / "methods"))  # the testers import each other's helpers
TOKEN, READ_TOKEN, OTHER_TOKEN = (f"hf_{letter * 34}" for letter in "WRO")
SHARED = ("org", "another")


@pytest.fixture
def token(hub, monkeypatch, capfd, caplog):
    """Logged in as org, who may write; at the end no token has been printed, logged or published, or sent to the CDN."""
    hub.tokens |= {TOKEN: User("org"), READ_TOKEN: User("org", write=False), OTHER_TOKEN: User("another")}
    caplog.set_level("DEBUG")
    yield log_in(TOKEN)
    log_in(None)
    printed = "".join(capfd.readouterr())
    for secret in (TOKEN, READ_TOKEN, OTHER_TOKEN):
        assert secret not in printed and secret not in caplog.text
        assert not any(secret.encode() in content for content in hub.blobs.values())
        for kind, name in hub.repositories:
            assert not any(secret.encode() in content for content in hub.files(name, kind=kind).values())
    assert not any(call["token"] for call in hub.calls(pattern="^/(blob|upload)/"))


def log_in(token):
    """As `hf auth login` does it: every process of this session finds the token."""
    path = Path(os.environ["HF_HOME"]) / "token"
    path.write_text(token) if token else path.unlink(missing_ok=True)
    return token


@pytest.fixture
def soon(monkeypatch):
    """Our waits before another try, in the time of a test; the library's own begin at a second."""
    monkeypatch.setattr(transfer, "WAITS", (0.05, 0.1, 0.1))


LETTERS = [chr(letter) for letter in range(ord("a"), ord("a") + 11)]
TEXT = {  # the tokenizers of what reads text
    "bert": BertTokenizer(
        vocab={t: i for i, t in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS))}
    ),
    "word2vec": word_tokenizer(LETTERS),
    "cpc_text": word_tokenizer(LETTERS),
}
FACTS = {  # of the embedded data of each kind, as cards state them
    "image": ("MIT", "Fashion-MNIST"),
    "text": ("OTHER, PSFL, POSTGRESQL", "twelve sources"),
    "audio": ("CC0-1.0", "six synthetic speakers"),
    PAIRS: ("MIT, APACHE-2.0, CC-BY-4.0", "captioned emoji"),
}


def make_processor(name):
    modality = modality_of(METHODS[name])
    return (
        TEXT[name]
        if modality == "text"
        else Wav2Vec2FeatureExtractor()
        if modality == "audio"
        else image_processor(16)
    )


def make_release(folder, name="mae", seed=0, steps=30):
    """What a run of a tiny model leaves; (folder, model)."""
    model = find_tester(name).model(seed).eval()
    args = TrainingArguments(output_dir=str(folder), max_steps=steps, seed=seed, eval_protocols="none")
    folder.mkdir(parents=True)
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no")
    data = SimpleNamespace(info=SimpleNamespace(dataset_name=SAMPLES[modality_of(model)][0]))
    unit = "words" if name == "word2vec" else "samples"
    facts = describe_run(accelerator, None, data, model.num_parameters(), unit)
    facts |= {"steps": steps, "max_steps": steps, "samples_seen": 64 * steps, "seconds": 12.3}
    write_json(folder / RUN_FILE, {"config": full_config(model.config), "arguments": asdict(args), "facts": facts})
    history = [{"step": step, "epoch": 0, "loss": 1 / step, "learning_rate": 0.1} for step in range(10, steps + 1, 10)]
    hf_ssl.save_release(TrainingRun(model, history, args, True), make_processor(name))
    return folder, model


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "tiny")[0]


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def commits(hub, repo="org/tiny"):
    return len(hub.repositories["models", repo].commits) - 1  # the first one comes with the repository


# -- round trips ----------------------------------------------------------------------------------------------------

PLAIN = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
for repo, own, file in json.loads(sys.argv[1]):
    expected = torch.load(file)
    model, report = AutoModel.from_pretrained(repo, output_loading_info=True, trust_remote_code=own)
    report["unexpected_keys"] = {key for key in report["unexpected_keys"] if not key.startswith(expected["heads"])}
    assert not any(report.values()), (repo, report)
    place = "transformers_modules." if own else "transformers.models."
    assert type(model).__module__.startswith(place), (repo, type(model))
    found = model.state_dict()
    assert found.keys() == expected["weights"].keys(), repo
    assert all(torch.equal(value, expected["weights"][name]) for name, value in found.items()), repo
    inputs = expected["inputs"]
    output = eval(expected["call"])
    torch.testing.assert_close(eval(expected["how"]), expected["features"], rtol=0, atol=1e-6)
    if "input_ids" in inputs:
        tokens = AutoTokenizer.from_pretrained(repo, trust_remote_code=own)("b A c")
        assert tokens["input_ids"] == expected["tokens"], (repo, tokens)
"""


def test_round_trip_of_every_method(hub, token, tmp_path):
    """Pushed privately; pulled where hf_ssl cannot be imported, and where it can."""
    asked = []
    for name in METHODS:
        folder, model = make_release(tmp_path / name, name)
        commit = push_release(folder, f"org/{name}", private=True)
        assert commits(hub, f"org/{name}") == 1 and hub.repositories["models", f"org/{name}"].resolve("main") == commit
        assert {path for path in hub.files(f"org/{name}") if not path.startswith(".")} == {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        encoder, tester = model.export_encoder(), find_tester(name)
        expected = {"weights": encoder.base_model.state_dict(), "inputs": tester.inputs()}
        expected |= {"features": model.embed(**tester.inputs()).detach(), "how": tester.released_features}
        expected |= {"call": tester.released_call, "heads": tester.released_heads}
        expected |= {"tokens": name in TEXT and TEXT[name]("b A c")["input_ids"]}
        torch.save(expected, tmp_path / f"{name}.pt")
        own = not type(encoder).__module__.startswith("transformers.models.")
        asked.append((f"org/{name}", own, str(tmp_path / f"{name}.pt")))

        pretraining = dict(subfolder="pretraining", output_loading_info=True)
        loaded, report = AutoModelForPreTraining.from_pretrained(f"org/{name}", **pretraining)
        assert type(loaded) is METHODS[name] and not any(report.values())
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
        assert set(verify(f"org/{name}")) >= {"config.json", "model.safetensors", "pretraining/model.safetensors"}
    run_plain(PLAIN, json.dumps(asked), HF_HUB_CACHE=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("pretraining")), "who wants the encoder does not fetch the rest"


def test_one_commit_branches_tags_and_nothing_twice(hub, token, release):
    first = push_release(release, "org/tiny", tag="v1")
    hub.requests.clear()
    assert push_release(release, "org/tiny", tag="v1") == first and commits(hub) == 1
    assert not hub.calls("PUT") and not hub.calls("POST", "commit")
    with pytest.raises(HubError, match="has no such revision"):
        verify("org/tiny", revision="v2")
    card = release / "README.md"
    card.write_text(card.read_text() + "\nMore words.\n")
    with pytest.raises(HubError, match="tag 'v1' of 'org/tiny' names another release"):
        push_release(release, "org/tiny", tag="v1")
    second = push_release(release, "org/tiny", revision="next", tag="v2")
    found = hub.repositories["models", "org/tiny"]
    assert (found.branches["main"], found.branches["next"], found.tags) == (first, second, {"v1": first, "v2": second})
    assert b"More words" in hub.files("org/tiny", "next")["README.md"]
    assert not hub.calls("PUT")  # the weights are there already


# -- faults ---------------------------------------------------------------------------------------------------------

CALLS = {  # what a push asks of the Hub
    "create": ("POST", "^/api/repos/create$"),
    "info": ("GET", "^/api/models/org/{name}$"),
    "tree": ("GET", "^/api/models/org/{name}/tree/"),
    "validate": ("POST", "^/api/validate-yaml$"),
    "preupload": ("POST", "^/api/models/org/{name}/preupload/"),
    "lfs batch": ("POST", "^/org/{name}.git/info/lfs/objects/batch$"),
    "upload": ("PUT", "^/upload/org/{name}/"),
    "lfs verify": ("POST", "^/org/{name}.git/info/lfs/objects/verify$"),
    "commit": ("POST", "^/api/models/org/{name}/commit/"),
    "tag": ("POST", "^/api/models/org/{name}/tag/"),
}
ACTIONS = {"500": 500, "503": 503, "429": 429, "reset": "reset", "lost": "lost"}


def test_every_call_of_a_push_may_fail_once(hub, token, soon, tmp_path):
    """500, 503, 429 with Retry-After, a reset, and an answer that is lost, at each call: one whole commit, nothing else."""
    folder, _ = make_release(tmp_path / "tiny")
    before = contents(folder)

    def push(case):
        (call, (method, pattern)), (label, action) = case
        name = f"{call.replace(' ', '-')}-{label}"
        fault = Fault(method, pattern.format(name=name), action, headers={"Retry-After": "1"} if action == 429 else {})
        hub.faults.append(fault)
        started = time.monotonic()
        push_release(folder, f"org/{name}", tag="v1")
        return call, label, name, fault.seen, time.monotonic() - started

    cases = [(call, action) for call in CALLS.items() for action in ACTIONS.items()]
    with ThreadPoolExecutor(len(cases)) as pool:  # most of it is waiting
        done = list(pool.map(push, cases))
    print("call | fault | requests | seconds")
    for call, label, name, seen, seconds in done:
        print(f"{call} | {label} | {seen} | {seconds:.1f}")
        assert seen >= 1 and commits(hub, f"org/{name}") == 1, name
        repository = hub.repositories["models", f"org/{name}"]
        assert repository.tags == {"v1": repository.branches["main"]}
        assert hub.files(f"org/{name}")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        for path in folder.rglob("*"):
            assert not path.is_file() or path.relative_to(folder).as_posix() in hub.files(f"org/{name}"), (name, path)
    assert contents(folder) == before


@pytest.mark.parametrize("call", ["create", "commit"])
@pytest.mark.parametrize("action", [500, "reset"])
def test_a_hub_that_stays_down_is_one_sentence(hub, token, soon, release, call, action):
    before = contents(release)
    method, pattern = CALLS[call]
    hub.faults.append(Fault(method, pattern.format(name="down"), action, times=99))
    with pytest.raises(
        HubError, match=r"^The Hub did not let us \w.* 'org/down' \(4 tries; .*\): nothing is half done"
    ):
        push_release(release, "org/down")
    assert call == "create" or commits(hub, "org/down") == 0
    hub.faults.clear()
    push_release(release, "org/down")
    assert commits(hub, "org/down") == 1 and contents(release) == before


def test_what_the_hub_asks_to_wait_is_waited_but_not_for_ever(hub, token, soon, release):
    hub.faults.append(Fault("POST", "/repos/create", 429, headers={"Retry-After": "1"}))
    started = time.monotonic()
    push_release(release, "org/tiny")
    assert time.monotonic() - started >= 1
    hub.faults.append(Fault("POST", "/repos/create", 429, headers={"RateLimit": '"api";r=0;t=1'}))
    push_release(release, "org/tiny")
    assert time.monotonic() - started >= 2
    hub.faults.append(Fault("POST", "/repos/create", 429, headers={"Retry-After": "7200"}))
    with pytest.raises(HubError, match="it asks to wait 7200 s"):
        push_release(release, "org/tiny")


@pytest.mark.parametrize("call", ["upload", "commit"])
def test_a_killed_push_leaves_the_old_release_and_the_next_completes_it(hub, token, release, tmp_path, call):
    method, pattern = CALLS[call]
    entered, go_on = Event(), Event()

    def wait():
        entered.set()
        go_on.wait(20)

    hub.faults.append(Fault(method, pattern.format(name="killed"), wait))
    newer, _ = make_release(tmp_path / "newer", seed=1)
    hub.add("org/killed", {"notes.md": b"mine"})
    [code] = launch(push_release, str(newer), "org/killed", kill_when=entered.is_set)
    assert code == -9
    assert commits(hub, "org/killed") == 1 and "config.json" not in hub.files("org/killed")  # the notes alone
    go_on.set()
    push_release(newer, "org/killed")
    assert hub.files("org/killed")["model.safetensors"] == (newer / "model.safetensors").read_bytes()
    assert hub.files("org/killed")["notes.md"] == b"mine" and commits(hub, "org/killed") == 2


def test_refusals_are_one_sentence_and_change_nothing(hub, token, release, tmp_path):
    log_in(READ_TOKEN)
    hub.add("org/tiny", {})
    for repo in ("org/tiny", "org/new", "another/tiny"):
        with pytest.raises(
            HubError, match=f"^The Hub did not let us .* '{repo}': the token has no write access there.$"
        ):
            push_release(release, repo)
    log_in(None)
    with pytest.raises(
        HubError, match="^The Hub did not let us write to 'org/tiny': no token was found: see `hf auth login`"
    ):
        push_release(release, "org/tiny")
    log_in(TOKEN)
    push_release(release, "org/secret", private=True)
    for who in (None, OTHER_TOKEN):
        log_in(who)
        with pytest.raises(HubError, match="^'org/secret' was not found on the Hub, or is private: .*token"):
            verify("org/secret")
    log_in(TOKEN)
    with pytest.raises(HubError, match="'org/tiny' is public on the Hub, and a private repository was asked for"):
        push_release(release, "org/tiny", private=True)
    assert commits(hub, "org/tiny") == 1

    other, _ = make_release(tmp_path / "simclr", "simclr")
    hub.add("org/foreign", {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"?"})
    push_release(release, "org/mae")
    for repo in ("org/foreign", "org/mae"):
        before = hub.files(repo)
        with pytest.raises(
            HubError, match=f"'{repo}' holds another model: its config differs in .*; choose another name"
        ):
            push_release(other, repo)
        assert hub.files(repo) == before
    with pytest.raises(InputError, match="repo_id 'a b' is no repository of the Hub: expected org/name"):
        push_release(release, "a b")
    with pytest.raises(InputError, match="is no release: config.json is missing"):
        push_release(tmp_path, "org/tiny")
    with pytest.raises(InputError, match="was not found: expected a release"):
        push_release(tmp_path / "nothing", "org/tiny")
    card = (release / "README.md").read_text()
    (release / "README.md").write_text(card.replace("library_name: transformers", "library_name: [trans"))
    with pytest.raises(HubError, match="did not let us write to 'org/broken': Invalid metadata in README.md"):
        push_release(release, "org/broken")


def test_a_token_that_no_header_can_carry_is_not_quoted(hub, token, release):
    log_in(f"{TOKEN}\x00")  # as from a damaged file; the client's own error quotes the whole header
    with pytest.raises(HubError, match=r"Illegal header value b'Bearer hf_\*\*\*") as caught:
        push_release(release, "org/tiny")
    assert TOKEN not in str(caught.value) and caught.value.__suppress_context__


def test_somebody_elses_commit_in_between_is_not_written_over(hub, token, soon, release):
    hub.add("org/tiny", {})
    hub.faults.append(
        Fault("POST", CALLS["commit"][1].format(name="tiny"), lambda: hub.add("org/tiny", {"a.md": b"!"}))
    )
    with pytest.raises(HubError, match="was changed by someone else while it was pushed: push again"):
        push_release(release, "org/tiny")
    push_release(release, "org/tiny")
    assert hub.files("org/tiny")["a.md"] == b"!"


def test_large_files_go_in_parts(hub, token, soon, release, monkeypatch):
    monkeypatch.setattr("hub_server.PART", 20_000)
    hub.faults.append(Fault("PUT", "/2$", "reset"))
    push_release(release, "org/parts")
    assert len(hub.calls("PUT", "/[0-9]+$")) > 3
    assert hub.files("org/parts")["model.safetensors"] == (release / "model.safetensors").read_bytes()


# -- downloads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "pretraining/model.safetensors"])
def test_a_flipped_bit_is_found_by_verify(hub, token, release, path):
    repo = f"org/flip-{path.replace('/', '-').split('.')[0]}"
    push_release(release, repo)
    hub.faults.append(Fault("GET", f"^/(blob|{repo}/resolve)/[^/]+/{path}$", "flip"))
    with pytest.raises(
        HubError, match=rf"^1 of the files of '{repo}' in .* are damaged: {path} \(expected \w+, found"
    ):
        verify(repo)


def test_downloads_that_break_are_taken_up_again(hub, token, soon, release):
    push_release(release, "org/tiny")
    for action in ("cut", "rst", "reset"):
        hub.faults.append(Fault("GET", "^/blob/.*model.safetensors$", action))
    hub.faults += [Fault("GET", "/tree/", 503), Fault("GET", "^/api/models/org/tiny", 500)]
    assert "model.safetensors" in verify("org/tiny")


def test_a_full_disk_is_one_sentence(hub, token, release):
    push_release(release, "org/full")
    assert re.match(
        "There is no space for 'org/full' in .*: make some, or set HF_HOME", launch(_verify_on_a_full_disk)[0]
    )


def _verify_on_a_full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # no file can grow beyond 3 kB, as on a full disk
    try:
        verify("org/full")
    except HubError as error:
        return str(error)


# -- training -------------------------------------------------------------------------------------------------------


@pytest.fixture
def online(hub, shards):
    """The images of `shards` as a data set of the local Hub."""
    card = {"README.md": b"---\nlicense: cc0-1.0\n---\n"}
    hub.add("org/pictures", card | {path.name: path.read_bytes() for path in shards.iterdir()}, kind="datasets")
    return "org/pictures"


def _stream(data, output_dir, options):
    return pretrain(data, output_dir, streaming=True, save_steps=24, **options)


def test_a_stream_survives_resets_and_a_restart_of_the_hub(hub, online, tmp_path):
    """Bitwise the weights of a run without faults, which are those of the same files read locally."""
    [history] = launch(_stream, online, tmp_path / "whole", {})
    assert _facts(tmp_path / "whole")["data"]["license"] == ["cc0-1.0"]
    calls = len(hub.calls("GET", "^/blob/"))
    assert calls >= 6  # three shards, more than one epoch
    restarted = []

    def restart():
        if not restarted:
            restarted.append(Thread(target=_restart, args=(hub,)))
            restarted[0].start()

    hub.faults += [
        Fault("GET", "^/blob/", "rst"),
        Fault("GET", "^/datasets/.*/resolve/", 503, skip=2),
        Fault("GET", "^/blob/", "cut", skip=2),
        Fault("GET", "^/blob/", restart, skip=calls - 4),
    ]
    [broken] = launch(_stream, online, tmp_path / "faulty", {})
    assert not hub.faults and restarted
    restarted[0].join()
    assert same_weights(tmp_path / "whole", tmp_path / "faulty") and broken == history


def _facts(folder):
    return json.loads((folder / RUN_FILE).read_text())["facts"]


def _restart(hub):
    hub.stop()
    time.sleep(1)
    hub.start()


TINY_FLAGS = [
    "--backbone", "vit-tiny-28", "--max_steps", 6, "--per_device_train_batch_size", 16, "--save_steps", 2, "--logging_steps", 2,
]  # fmt: skip


def test_a_run_that_pushes_at_every_save_goes_on_from_the_hub(hub, token, shards, tmp_path):
    """The machine is lost after step 4; another one takes the run up and ends with the weights of an unbroken run."""
    flags = ["--dataset_name", shards, *TINY_FLAGS]
    code, _, err = run("pretrain_mae.py", *flags, "--output_dir", tmp_path / "whole", "--eval_protocols", "none")
    assert code == 0, err
    push = [*flags, "--eval_protocols", "knn", "--label_column", "label"]
    push += ["--push_to_hub", "--hub_model_id", "org/run", "--hub_private_repo", "--hub_strategy", "every_save"]
    hub.faults.append(Fault("POST", "^/api/models/org/run/commit/", 403, skip=2, times=99))  # the machine's end
    code, _, err = run("pretrain_mae.py", *push, "--output_dir", tmp_path / "lost")
    assert code == 1 and "The release is whole in" in err and "hf-ssl push" in err, err
    hub.faults.clear()
    assert hub.repositories["models", "org/run"].private and commits(hub, "org/run") == 2, err
    pushed = hub.files("org/run")
    assert {path.split("/")[1] for path in pushed if path.startswith("checkpoints/")} == {"step_4"}
    assert not [path for path in pushed if path.endswith((".bin", ".pkl", ".pt"))]
    assert str(tmp_path).encode() not in b"".join(pushed.values())
    assert b"4 of 6 steps" in pushed["README.md"] and b'"org/run"' in pushed["README.md"]

    resume = ["--resume_from_checkpoint", "hub:org/run"]
    code, _, err = run("pretrain_mae.py", *push, *resume, "--output_dir", tmp_path / "again")
    assert code == 0, err
    assert "going on from" in err and "at step 4" in err
    assert same_weights(tmp_path / "whole", tmp_path / "again", 6)
    reached = ("steps", "max_steps", "samples_seen")  # the time is that of both machines
    assert [_facts(tmp_path / "again")[name] for name in reached] == [6, 6, 96]
    assert _facts(tmp_path / "again")["seconds"] >= json.loads(pushed["run.json"])["facts"]["seconds"]
    assert commits(hub, "org/run") == 3
    pushed = hub.files("org/run")
    assert pushed["model.safetensors"] == (tmp_path / "again/model.safetensors").read_bytes()
    assert {path.split("/")[1] for path in pushed if path.startswith("checkpoints/")} == {"step_6"}
    assert (AutoModel.from_pretrained("org/run").config.model_type, len(verify("org/run"))) == ("vit", len(pushed) - 5)

    code, _, err = run(
        "pretrain_mae.py", *flags, "--output_dir", tmp_path / "x", "--resume_from_checkpoint", "hub:org/no"
    )
    assert code == 1 and "error: 'org/no' was not found on the Hub" in err


@pytest.mark.parametrize("name", TEXT)
def test_a_run_on_text_goes_on_from_the_hub_with_its_vocabulary(hub, token, documents, tmp_path, name):
    """Where the words were counted or the tokens learnt before, they are so again; the weights are those of an unbroken run."""
    flags = ["--dataset_name", documents, "--save_steps", 1, "--logging_steps", 1, "--eval_protocols", "none"]
    flags += ["--cpu_threads", 1]
    if name == "bert":
        flags += ["--max_steps", 3, "--per_device_train_batch_size", 8, "--max_seq_length", 32, "--vocab_size", 300]
    elif name == "cpc_text":
        flags += ["--max_steps", 3, "--per_device_train_batch_size", 4, "--vocab_size", 300]
    else:
        flags += ["--num_train_epochs", 3, "--config_overrides", "backbone_config.hidden_size=16"]
    code, _, err = run(f"pretrain_{name}.py", *flags, "--output_dir", tmp_path / "whole")
    assert code == 0, err
    push = [*flags, "--push_to_hub", "--hub_model_id", "org/run", "--hub_strategy", "every_save"]
    hub.faults.append(Fault("POST", "^/api/models/org/run/commit/", 403, skip=2, times=99))
    code, _, err = run(f"pretrain_{name}.py", *push, "--output_dir", tmp_path / "lost")
    assert code == 1 and "The release is whole in" in err, err
    hub.faults.clear()
    pushed = hub.files("org/run")
    assert {path.split("/")[1] for path in pushed if path.startswith("checkpoints/step")} == {"step_2"}
    assert ("checkpoints/step_2/tokenizer/tokenizer.json" in pushed) == (
        name != "word2vec"
    ) and "tokenizer.json" in pushed
    assert not [path for path, content in pushed.items() if str(tmp_path).encode() in content]
    assert b"2 of 3 steps" in pushed["README.md"]
    if name != "word2vec":
        push[push.index(300)] = 200  # would be another vocabulary, if it were learnt again
    resume = ["--resume_from_checkpoint", "hub:org/run"]
    code, _, err = run(f"pretrain_{name}.py", *push, *resume, "--output_dir", tmp_path / "again")
    assert code == 0, err
    whole, again = (load_file(tmp_path / folder / "pretraining/model.safetensors") for folder in ("whole", "again"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    assert [_facts(tmp_path / "again")[key] for key in ("steps", "max_steps")] == [3, 3]
    assert commits(hub, "org/run") == 3


def test_what_cannot_be_pushed_is_known_before_the_work(hub, token, shards, tmp_path):
    flags = ["--dataset_name", shards, *TINY_FLAGS, "--output_dir", tmp_path / "run"]
    hub.add("org/foreign", {"config.json": b'{"model_type": "bert"}'})
    for arguments, message in (
        (["--push_to_hub"], "push_to_hub and hub_model_id belong together"),
        (["--push_to_hub", "--hub_model_id", "mine"], "hub_model_id 'mine' is no repository of the Hub"),
        (["--push_to_hub", "--hub_model_id", "org/foreign"], "'org/foreign' holds another model"),
        (["--hub_strategy", "all"], "hub_strategy 'all' is unknown: expected one of end, every_save"),
    ):
        code, _, err = run("pretrain_mae.py", *flags, *arguments)
        [error] = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 1 and message in error and "Traceback" not in err and not (tmp_path / "run").exists(), err


def test_the_script_pushes_any_release(hub, token, release):
    code, _, err = run("push_to_hub.py", release, "org/script", "--private", "--tag", "v1.0")
    assert code == 0 and "org/script is at" in err, err
    assert hub.repositories["models", "org/script"].private and "v1.0" in hub.repositories["models", "org/script"].tags
    code, _, err = run("push_to_hub.py", release.parent, "org/script")
    assert code == 1 and err.startswith("error: folder") and err.count("\n") == 1


def test_results_do_not_outlive_the_weights_they_belong_to(hub, token, tmp_path):
    folder, model = make_release(tmp_path / "tiny")
    args = TrainingArguments(output_dir=str(folder))
    numbers = {row: {"knn": 87.65} for row in ("random_initialisation", "pretrained")}
    results = {
        "model": str(folder),
        "dataset": {"name": None, "config": None, "test_split": "test"},
        "settings": {},
        "results": numbers,
        "metrics": {"knn": asdict(METRICS["knn"])},
        "pictures": [],
    }
    write_json(folder / "eval_results.json", results)
    for same in (True, False):
        if not same:
            with torch.no_grad():
                next(model.parameters()).add_(1)
        hf_ssl.save_release(TrainingRun(model, [], args, True), image_processor(16))
        push_release(folder, "org/tiny")
        assert (folder / "eval_results.json").is_file() == ("eval_results.json" in hub.files("org/tiny")) == same
        assert (b"87.65" in hub.files("org/tiny")["README.md"]) == same


# -- cards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_card_is_whole_and_regenerates_unchanged(tmp_path, name):
    folder, model = make_release(tmp_path / name, name)
    text = (folder / "README.md").read_text()
    write_card(folder)
    assert (folder / "README.md").read_text() == text and "{{" not in text and "{%" not in text
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.library_name == "transformers" and data.pipeline_tag and name in data.tags
    assert data.license is None  # of which nobody has said anything
    for heading in ("## Use", "## Objective", "## Training", "## Limits"):
        assert f"\n{heading}\n" in text, heading
    assert "Deviation" in text and "arxiv.org" in text and "12.3" not in text.split("---")[1]
    assert not re.search(r"\|---:?\|\n(?!\|)", text), "an empty table"
    for fact in (*FACTS[modality_of(model)], "1,920", "seed", "torch"):
        assert fact in text, fact
    run = json.loads((folder / RUN_FILE).read_text())
    write_json(folder / RUN_FILE, {key: run[key] for key in ("config", "arguments")})
    write_card(folder)  # what is not known is not told
    assert "their licence is not stated" in (folder / "README.md").read_text()


def stated_by(folder, metadata):
    """What a run on a local data set whose README.md has these `metadata` writes down of it."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no")
    return describe_run(accelerator, str(folder), None, 1)["data"]


@pytest.mark.parametrize(
    ("metadata", "title", "licences"),
    [
        ("license: yes", None, []),
        ("license: 42\npretty_name: 7", None, []),
        ("license: null", None, []),
        ("license: [mit, null, 3]", None, ["mit"]),
        ("pretty_name: Birds: Europe", None, []),
        ("license: cc0-1.0\npretty_name: Birds", "Birds", ["cc0-1.0"]),
    ],
)
def test_what_a_data_card_states_is_taken_where_it_is_text(tmp_path, metadata, title, licences):
    assert stated_by(tmp_path / "data", metadata) == {"title": title, "license": licences}


def test_a_data_card_that_is_no_yaml_is_one_sentence_and_no_matter_of_local_files(hub, tmp_path):
    card = b"---\npretty_name: Birds: Europe\n---\n"
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "README.md").write_bytes(card)
    assert load_split(str(tmp_path))["text"] == ["a"]
    hub.add("org/birds", {path.name: path.read_bytes() for path in tmp_path.iterdir()}, kind="datasets")
    with pytest.raises(InputError, match=r"the metadata of its README.md are no YAML \(mapping values are not"):
        load_split("org/birds", streaming=True)


def rewritten(folder, arguments=(), facts=(), **run):
    """The card of a release whose run.json says otherwise."""
    found = json.loads((folder / RUN_FILE).read_text())
    found["arguments"] |= dict(arguments)
    found["facts"] |= dict(facts)
    write_json(folder / RUN_FILE, found | run)
    write_card(folder)
    return (folder / "README.md").read_text()


def test_names_from_elsewhere_do_not_shape_the_card(release, tmp_path):
    plain_card = (release / "README.md").read_text()
    name = "bad](http://x) <img src=x>|\n\n# Heading\n| a | b |\n```\n---\n"
    stated = {"title": name, "license": [name]}
    result = {
        "model": str(release),
        "dataset": {
            "name": name,
            "local": True,
            "config": name,
            "train_split": name,
            "test_split": name,
            "test_rows": 3,
        },
        "settings": {"seed": 0, "max_samples": None},
        "results": {"pretrained": {"knn": 12.5}},
        "metrics": {"knn": asdict(METRICS["knn"]) | {"name": name, "title": f"knn ({name})"}},
        "pictures": [],
    }
    write_json(release / "eval_results.json", result)
    arguments = {"dataset_name": name, "label_column": name, "config_overrides": name}
    card = rewritten(release, arguments, {"data": stated})
    body = card.split("\n---\n")[-1]
    lines = body.splitlines()
    assert "<img" not in body and "bad](" not in body and "&lt;img" in body
    assert [line for line in lines if line.startswith("#")] == [
        *(line for line in plain_card.splitlines() if line.startswith("#") and line != "## Training"),
    ][:2] + ["## Results", "## Objective", "## Training", "## Limits", "## Deviations from the paper"]
    assert body.count("```") == plain_card.count("```") and "# Heading |" in card.replace("\\|", "|")
    [row] = [line for line in lines if line.startswith("| Pretrained")]
    [titles] = [line for line in lines if "knn (bad" in line]
    assert row == "| Pretrained | 12.5 |" and titles.replace("\\|", "").count("|") == 3
    ModelCard(card, ignore_metadata_errors=False)


@pytest.mark.parametrize(
    ("given", "theirs", "expected"),
    [
        (None, [], None),
        ("mit", [], "mit"),
        (None, ["cc-by-nc-4.0"], "cc-by-nc-4.0"),
        ("mit", ["cc-by-nc-4.0"], "cc-by-nc-4.0"),
    ],
)
def test_a_release_has_the_licence_that_was_given_and_weights_of_others_keep_theirs(release, given, theirs, expected):
    card = rewritten(release, {"license": given}, {"weights_license": theirs})
    assert ModelCard(card).data.license == expected


def test_the_licence_of_weights_is_read_from_their_card(hub, release, tmp_path):
    hub.add("org/weights", {"README.md": b"---\nlicense: openrail\n---\n"})
    (release / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no")
    begun_from = [str(release), "org/weights", "org/nothing", "vit-tiny-28", None]
    facts = describe_run(
        accelerator, None, SimpleNamespace(info=SimpleNamespace(dataset_name="images")), 1, "x", begun_from
    )
    assert facts["weights_license"] == ["cc-by-4.0", "openrail"]
    with pytest.raises(InputError, match="license 'My own' is no name that the Hub knows"):
        TrainingArguments(license="My own")


def test_a_local_folder_called_like_a_hub_id_is_never_published_as_one(release, tmp_path, monkeypatch):
    """Where a run starts is where it is known; the card may be written from anywhere."""
    (tmp_path / "client_x/secret").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    args = TrainingArguments(output_dir="run", dataset_name="client_x/secret", backbone="org/encoder")
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, process_index=0)
    config = hf_ssl.MAEConfig.from_pretrained(release / "pretraining")
    with claimed(tmp_path / "run"):
        _, begun = claim_output_dir(accelerator, tmp_path / "run", config, args, 10)
    monkeypatch.chdir(release)
    command = ["pretrain_mae.py", "--dataset_name", "client_x/secret", "--backbone=org/encoder"]
    card = rewritten(release, begun["arguments"], {"command": command}, places=begun["places"])
    data = ModelCard(card).data
    assert "client_x" not in card
    assert "(secret)" in card and data.datasets is None
    assert data.base_model == "org/encoder" and "mae --dataset_name secret --backbone=org/encoder" in card
    published = public_run(json.loads((release / RUN_FILE).read_text()))
    assert "client_x" not in json.dumps(published) and public_run(published) == published
    results = {"model": "x", "dataset": {"name": "client_x/secret", "local": True}}
    assert "client_x" not in json.dumps(transfer._public_results(results | {"further": [results]}))


SECRETS = [
    "hf_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrst", "github_pat_11ABCDEFG0abcdefghij_k",
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789", "AKIAIOSFODNN7EXAMPLE", "s3://user:password@bucket/x",
    "https://x/y?token=abcdef", "https://x/y?a=b&X-Amz-Signature=abcdef",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens_in_arguments_are_written_nowhere(release, tmp_path, secret):
    args = TrainingArguments(output_dir=str(tmp_path / "run"), dataset_name=secret, config_overrides=f"x={secret}")
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, process_index=0)
    with claimed(tmp_path / "run"):
        _, begun = claim_output_dir(accelerator, tmp_path / "run", hf_ssl.MAEConfig(), args, 10)
    card = rewritten(release, asdict(args), {"command": ["pretrain_mae.py", f"--dataset_name={secret}"]})
    published = json.dumps(public_run(json.loads((release / RUN_FILE).read_text())))
    kept = ("token=", "ghp_", "github_pat_", "Signature=", "password", "AKIA", "hf_", "sk-")
    [beginning] = [each for each in kept if each in secret]
    hidden = secret[secret.index(beginning) + (0 if beginning == "password" else len(beginning)) :].split("@")[0]
    for text in (json.dumps(begun), card, published):
        assert hidden not in text and "***" in text


def test_a_short_run_has_no_empty_plot_and_no_empty_table(release, tmp_path):
    folder, model = tmp_path / "short", METHODS["mae"].from_pretrained(release / "pretraining")
    shutil.copytree(release, folder)
    shutil.rmtree(folder / "images")
    run = json.loads((folder / RUN_FILE).read_text())
    write_json(folder / RUN_FILE, {name: run[name] for name in ("config", "arguments")})
    results = {
        "model": "x",
        "dataset": {},
        "settings": {},
        "results": {},
        "metrics": {},
        "pictures": ["images/word_map.png"],
    }
    write_json(folder / "eval_results.json", results)
    hf_ssl.save_release(
        TrainingRun(model.eval(), [], TrainingArguments(output_dir=str(folder)), True), image_processor(16)
    )
    card = (folder / "README.md").read_text()
    assert not (folder / "images/loss.png").exists() and "loss.png" not in card
    assert "![frequent words by t-SNE](images/word_map.png)" in card
    assert not re.search(r"\|---\|\n(?!\|)", card) and not re.search(r"\|---:?\|\n\n", card)


def test_a_name_that_is_no_utf8_does_not_end_the_card(release):
    folder = release.with_name(os.fsdecode(b"caf\xe9 <b>"))
    os.rename(release, folder)
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert (
        "# caf\\udce9" in card.replace("\\\\", "\\")
        and ModelCard(card).data.model_name
        and "<b>" not in card.split('"')[0]
    )
    code = re.search(r'AutoModel.from_pretrained\("(.*?)"', card)[1]
    assert Path(code.encode().decode("unicode_escape")) == folder


def test_what_a_release_needs_of_transformers_is_on_its_card(tmp_path):
    for name, oldest in (("mae", "4.57"), ("clip", "5.0"), ("word2vec", "5.4")):
        folder, _ = make_release(tmp_path / name, name)
        assert f"\nLoads with transformers {oldest} or later" in (folder / "README.md").read_text()


def test_a_tag_that_the_hub_refuses_leaves_the_release_and_says_so(hub, token, release):
    hub.faults.append(Fault("POST", CALLS["tag"][1].format(name="tiny"), 403, times=9))
    with pytest.raises(
        HubError, match=r"^'org/tiny' holds the release, at [0-9a-f]{10}, but not under the tag 'v1': The Hub did"
    ):
        push_release(release, "org/tiny", tag="v1")
    assert "model.safetensors" in hub.files("org/tiny")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", None])
def test_damaged_weights_are_not_pushed(hub, token, release, content):
    path = release / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if content is None else content)
    with pytest.raises(InputError, match=r"model.safetensors is damaged \(.*\): nothing is pushed"):
        push_release(release, "org/damaged")
    (release / "model.safetensors").write_bytes(whole)
    for name, broken in (("config.json", "{"), (RUN_FILE, "{"), (RUN_FILE, "[]"), ("README.md", "\xe9")):
        kept = (release / name).read_bytes()
        (release / name).write_text(broken, encoding="latin-1")
        with pytest.raises(InputError, match="is damaged|is not UTF-8"):
            push_release(release, "org/damaged")
        (release / name).write_bytes(kept)
    assert ("models", "org/damaged") not in hub.repositories


def test_a_full_disk_while_a_release_is_written_does_not_stop_training(hub, token, release, caplog):
    """One sentence at the end of a run, a warning at a checkpoint; the release that was there is whole."""
    before = contents(release)
    model = find_tester("mae").model(1).eval()
    pushed = {"push_to_hub": True, "hub_model_id": "org/full", "hub_strategy": "every_save"}
    run = TrainingRun(model, [], TrainingArguments(output_dir=str(release), **pushed), True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = (release / "model.safetensors").stat().st_size
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (largest // 2, limits[1])
    )  # as on a full disk, no file can grow beyond it
    try:
        with pytest.raises(InputError, match="^The release could not be written to .*: .*") as caught:
            hf_ssl.save_release(run, image_processor(16))
        push_save(image_processor(16), run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(caught.value) or "os error 27" in str(caught.value)
    assert "Training goes on, but this checkpoint was not pushed: The release could not be written" in caplog.text
    assert contents(release) == before and not list(release.glob(".*partial*"))
