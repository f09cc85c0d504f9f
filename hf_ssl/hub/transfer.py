"""Between a folder and the Hub: push a release in one commit, fetch a training state, verify what was downloaded.

huggingface_hub retries uploads by itself, but neither the creation of a repository nor a commit, and a commit whose answer was
lost looks like one that failed. So each step here is repeated with growing waits as long as that can help, and each try of a
commit first compares what the Hub holds with what it should hold. What cannot be helped is said in one sentence.
"""

import errno
import hashlib
import json
import logging
import re
import time
from pathlib import Path

from accelerate.utils import parse_flag_from_env
from httpx2 import HTTPStatusError, LocalProtocolError, TransportError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..training.checkpoints import (
    RUN_FILE,
    TOKENIZER,
    differing,
    find_checkpoint,
    find_damage,
    from_main,
    list_checkpoints,
)
from ..training.records import plain, public_place, public_run, redact, redacted

logger = logging.getLogger(__name__)
FROM_HUB = "hub:"  # before the repository, in --resume_from_checkpoint
WAITS = (1, 2, 4, 8, 16)  # seconds before each further try
LONGEST_WAIT = 300  # asked for by the Hub, and still waited for
CARD, EVAL_RESULTS, PARTIAL_RELEASE = "README.md", "eval_results.json", ".release.partial"
MEASURED = (EVAL_RESULTS, "word_tests.json")  # what belongs to the weights that it was measured on
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class HubError(InputError):
    """The Hub refused, could not be reached, or holds something else than expected."""


def push_release(folder, repo_id, *, private=False, revision=None, tag=None, training_state=False, message=None):
    """Publish the release in `folder` as `repo_id`, in one commit; returns the commit's hash.

    private: for a new repository; an existing one that is public is refused. revision: a branch, made if there is none.
    tag: a name for the commit. training_state: also the newest checkpoint, for `--resume_from_checkpoint hub:org/name`.
    What is unchanged is not sent again, so a second push completes one that was broken off. The token is that of
    `hf auth login` or HF_TOKEN. Raises InputError; the Hub then holds the old release or the new one, whole.
    """
    folder = Path(folder)
    files = _release_files(folder, repo_id, training_state)
    config = _identity(lambda name: json.loads(_read(files[name])) if name in files else None)
    api = open_repository(repo_id, config, private, revision)
    if tag:
        persistently(lambda: _check_tag(api, repo_id, tag, files), repo_id, "read")
    message = redact(message or f"Release of {plain(folder.resolve().name)}")
    commit = persistently(lambda: commit_files(api, repo_id, revision, files, message), repo_id, "write to")
    if tag:
        make_tag = lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)  # noqa: E731
        try:
            persistently(make_tag, repo_id, "write to")
        except HubError as error:
            raise HubError(
                f"'{repo_id}' holds the release, at {commit[:10]}, but not under the tag '{tag}': {error}"
            ) from None
    logger.info("%s/%s is at %s", api.endpoint, repo_id, commit[:10])
    return commit


def open_repository(repo_id, config, private=False, revision=None):
    """The HfApi for a repository that exists now and holds no other model than `config`, the config of a run or release."""
    check_repo_id("repo_id", repo_id)
    api = HfApi()
    create = lambda: api.create_repo(repo_id, private=private or None, exist_ok=True)  # noqa: E731
    persistently(create, repo_id, "create")
    if persistently(lambda: api.repo_info(repo_id), repo_id, "read").private is False and private:
        raise HubError(
            f"'{repo_id}' is public on the Hub, and a private repository was asked for: choose another name."
        )
    if revision:
        branch = lambda: api.create_branch(repo_id, branch=revision, exist_ok=True)  # noqa: E731
        persistently(branch, repo_id, "write to")
    persistently(lambda: _check_same_model(api, repo_id, revision, config), repo_id, "read")
    return api


def verify(repo_id, revision=None):
    """Compare each file of a repository, downloaded if it is not in the cache, with the Hub's record of its hash.

    SHA-256 for large files, git's for the others; training states only if they were downloaded. Returns the names of the
    files. Raises HubError that names what is damaged: downloads over plain HTTP are not checked otherwise.
    """
    check_repo_id("repo_id", repo_id)
    state = "checkpoints/"
    download = lambda: snapshot_download(repo_id, revision=revision, ignore_patterns=[f"{state}*"])  # noqa: E731
    folder = Path(persistently(download, repo_id, "read"))
    compare = lambda: HfApi().verify_repo_checksums(repo_id, revision=folder.name)  # noqa: E731
    found = persistently(compare, repo_id, "read")
    wrong = [f"{file['path']} (expected {file['expected']}, found {file['actual']})" for file in found.mismatches]
    wrong += [f"{path} (missing)" for path in found.missing_paths if not path.startswith(state)]
    if wrong:
        raise HubError(
            f"{len(wrong)} of the files of '{repo_id}' in {folder} are damaged: {', '.join(wrong)}; remove that folder's "
            "files, or load with force_download=True."
        )
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def local_checkpoint(state, resume_from):
    """`--resume_from_checkpoint` as None, auto or a folder: the main process fetches a training state from the Hub.

    Called by every process. state: an Accelerator or PartialState. A sharded run is refused: its files are pickles.
    """
    if not (resume_from or "").startswith(FROM_HUB):
        return resume_from
    if any(map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))):
        raise InputError(f"resume_from_checkpoint '{resume_from}': a sharded run goes on from a local folder only.")
    return from_main(state, lambda: str(fetch_training_state(resume_from)))


def fetch_training_state(address):
    """The checkpoint folder of `hub:org/name` or `hub:org/name@revision`, in the cache, whole."""
    repo_id, _, revision = address.removeprefix(FROM_HUB).partition("@")
    check_repo_id("resume_from_checkpoint", repo_id)

    def download(again=False):
        arguments = {"revision": revision or None, "allow_patterns": [RUN_FILE, "checkpoints/*"]}
        return snapshot_download(repo_id, **arguments, force_download=again)

    found = list_checkpoints(persistently(download, repo_id, "read"))
    if not found:
        raise HubError(
            f"'{repo_id}' has no training state: it is pushed by --hub_strategy every_save or hf-ssl push --training_state."
        )
    if damage := find_damage(found[0]):
        logger.warning("The training state of %s arrived damaged (%s): it is downloaded again.", repo_id, damage)
        persistently(lambda: download(again=True), repo_id, "read")
    return found[0]


def check_repo_id(name, repo_id):
    """Raise InputError, naming the argument, unless `repo_id` is an organisation or user and a name."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise InputError(f"{name} '{redact(repo_id)}' is no repository of the Hub: expected org/name.")


def _release_files(folder, repo_id, training_state):
    """What is pushed: path in the repository -> a Path, or the bytes that differ from the local ones."""
    if not folder.is_dir():
        raise InputError(f"folder '{folder}' was not found: expected a release.")
    if (folder / PARTIAL_RELEASE).exists():
        raise InputError(
            f"The release in '{folder}' was not written to its end: evaluate or train it to the end first."
        )
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if (
            not hidden
            and not name.startswith(("checkpoints/", "logs/"))
            and path.suffix not in PICKLES + (".partial",)
        ):
            files[name] = path
    for name in ("config.json", CARD):
        if name not in files:
            raise InputError(f"folder '{folder}' is no release: {name} is missing.")
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in files):
        raise InputError(f"folder '{folder}' is no release: model.safetensors is missing.")
    for path in files.values():
        if path.suffix == ".safetensors":
            _check_weights(path)
        elif path.suffix == ".json":
            _check_json(path)
    try:
        files[CARD] = _addressed(files[CARD].read_text(encoding="utf-8"), repo_id).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"{files[CARD]} is not UTF-8: save it as that.") from error
    for name, public in ((RUN_FILE, public_run), (EVAL_RESULTS, _public_results)):
        if name in files:
            try:
                files[name] = json.dumps(public(json.loads(files[name].read_text())), indent=1).encode()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{files[name]} is damaged ({error}): evaluate or train to the end again.") from error
    if training_state:
        checkpoint = find_checkpoint(folder, "auto")
        if checkpoint is None:
            raise InputError(f"folder '{folder}' has no training state: expected checkpoints/step_<n>.")
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            if path.parent.name != TOKENIZER and path.suffix not in (".json", ".safetensors"):
                raise InputError(
                    f"The training state of a sharded run, {path.name}, cannot be pushed: only whole ones can."
                )
            files[path.relative_to(folder).as_posix()] = path
    return files


def _check_json(path):
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): evaluate or train to the end again.") from error


def _check_weights(path):
    """Raise InputError unless a file is as long as its header says, and has one."""
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}): nothing is pushed.") from error


def _addressed(card, repo_id):
    """The card with the repository's id where its code has the place of the local folder."""
    address = re.search(r'from_pretrained\(\s*"([^"]+)"', card)
    return card.replace(f'"{address[1]}"', f'"{repo_id}"') if address else card


def _public_results(results):
    """eval_results.json without the places of local files, which they were when the evaluation was made."""
    published = redacted(results) | {"model": Path(results["model"]).name}
    if data := results["dataset"]:
        name, local = data.get("name"), data.get("local")
        place = (
            {"name": name and Path(name).name, "local": True} if local else public_place(name) if local is None else {}
        )
        published["dataset"] = redacted(data) | place
    if "further" in results:
        published["further"] = [_public_results(each) for each in results["further"]]
    return published


def _identity(read):
    """What tells a model from another: the config of its run, or that in its files. read: from a name to a dict or None."""
    run = read(RUN_FILE)
    return run["config"] if run else read("pretraining/config.json") or read("config.json") or {}


def _check_same_model(api, repo_id, revision, config):
    head = api.repo_info(repo_id, revision=revision).sha
    names = _remote_files(api, repo_id, head).keys()
    if not any(name.endswith((*WEIGHTS, "config.json")) for name in names):
        return

    def read(name):
        if name not in names:
            return None
        return json.loads(Path(api.hf_hub_download(repo_id, name, revision=head)).read_text())

    changed = differing(config, _identity(read))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise HubError(
            f"'{repo_id}' holds another model: its config differs in {', '.join(changed[:3])}{more}; choose another name."
        )


def _check_tag(api, repo_id, tag, files):
    """A tag is there for good: refuse one that names something else before anything is pushed."""
    for found in api.list_repo_refs(repo_id).tags:
        if found.name == tag and any(_differ(_remote_files(api, repo_id, found.target_commit), files)):
            raise HubError(f"tag '{tag}' of '{repo_id}' names another release already: choose another.")


def commit_files(api, repo_id, revision, files, message, repo_type=None):
    """One try: compare, and commit what differs. Returns the commit that holds the files, {name: a Path or bytes}."""
    where = {"revision": revision, "repo_type": repo_type}
    head = api.repo_info(repo_id, **where).sha
    added, deleted = _differ(_remote_files(api, repo_id, head, repo_type), files)
    if not added and not deleted:  # also after a commit whose answer was lost
        return head
    operations = [CommitOperationDelete(name) for name in deleted]
    for name in added:
        content = files[name]
        operations.append(CommitOperationAdd(name, content if isinstance(content, bytes) else str(content)))
    # parent_commit: what was compared is what is written over
    return api.create_commit(repo_id, operations, commit_message=message, parent_commit=head, **where).oid


def _remote_files(api, repo_id, revision, repo_type=None):
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {file.path: file for file in tree if hasattr(file, "blob_id")}


def _differ(remote, files):
    """(names to add, names to delete): of what a push does not bring, what belongs to other weights is taken away."""
    added = [name for name, content in files.items() if name not in remote or not _same(remote[name], content)]
    old = [name for name in remote if name.startswith("checkpoints/") or name in MEASURED]
    return added, [name for name in old if name not in files]


def _same(remote, content):
    """Whether the Hub's record of a file is that of `content`, by SHA-256 or git's SHA-1."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if remote.size != size:
        return False
    digest = hashlib.sha256() if remote.lfs else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() == (remote.lfs.sha256 if remote.lfs else remote.blob_id)


def _read(content):
    return content if isinstance(content, bytes) else content.read_bytes()


def persistently(call, repo_id, aim):
    """`call()`, repeated with growing waits while the Hub is busy or cut off. aim: what is done to the repository."""
    for wait in (*WAITS, None):
        try:
            return call()
        except InputError:
            raise
        except Exception as error:
            asked = _worth_another_try(error)
            if asked is None or wait is None or asked > LONGEST_WAIT:
                # without its cause, whose text may quote the request's headers
                raise HubError(_sentence(error, repo_id, aim, asked)) from None
            wait = max(wait, asked)
            logger.warning("%s: trying again in %.0f s.", _reason(error), wait)
        time.sleep(wait)


def _worth_another_try(error):
    """The seconds to wait that the Hub asks for, 0 if it names none; None where trying again would change nothing."""
    while error is not None:
        if isinstance(error, (OfflineModeIsEnabled, LocalProtocolError)):  # the last: not a request at all
            return None
        if isinstance(error, HfHubHTTPError):
            status, headers = error.response.status_code, error.response.headers
            if status not in (408, 429) and status < 500:
                return None
            limit = parse_ratelimit_headers(headers)
            if status == 429 and limit is not None and limit.remaining == 0:
                return float(limit.reset_in_seconds)
            asked = headers.get("Retry-After", "")
            return float(asked) if asked.isdigit() else 0.0
        if isinstance(error, (TransportError, ConnectionError, json.JSONDecodeError)):
            return 0.0  # the last: an error page where JSON should be
        error = error.__cause__
    return None


def _sentence(error, repo_id, aim, asked):
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    no_token = None if get_token() else "no token was found: see `hf auth login`, or set HF_TOKEN"
    if asked is not None:
        waits = f"it asks to wait {asked:.0f} s" if asked > LONGEST_WAIT else f"{len(WAITS) + 1} tries"
        return f"The Hub did not let us {aim} '{repo_id}' ({waits}; {_reason(error)}): nothing is half done, try again later."
    if isinstance(error, RevisionNotFoundError):
        return f"'{repo_id}' has no such revision: expected a branch, tag or commit of it."
    if status in (409, 412):
        return f"'{repo_id}' was changed by someone else while it was pushed: push again."
    if status in (401, 403, 404) and aim != "read":
        return f"The Hub did not let us {aim} '{repo_id}': {no_token or 'the token has no write access there'}."
    if status in (401, 403, 404):
        return f"'{repo_id}' was not found on the Hub, or is private: {no_token or 'the token may not read it'}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"There is no space for '{repo_id}' in {constants.HF_HUB_CACHE} ({error.strerror}): make some, or set HF_HOME."
    return f"The Hub did not let us {aim} '{repo_id}': {_reason(error)}."


def _reason(error):
    """The error, and what it came from if that is another message, in one line and without a token."""
    texts = []
    while error is not None and not (texts and isinstance(error, HTTPStatusError)):  # which HfHubHTTPError has told
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "developer.mozilla" not in line]
        text = " ".join(lines[:2]).rstrip(".") or type(error).__name__
        texts += [text] if text not in texts else []
        error = error.__cause__
    return redact(": ".join(texts[:2]))


__all__ = ["HubError", "push_release", "verify"]
