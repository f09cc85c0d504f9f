"""The Space of a release: a page on the Hub that shows what it can do, by the same code as `hf-ssl demo`."""

import json
import logging
from importlib.metadata import PackageNotFoundError, version

from huggingface_hub import HfApi, SpaceCardData

from ..errors import InputError
from ..evaluation import find_modality
from .transfer import CARD, HubError, check_repo_id, commit_files, persistently

logger = logging.getLogger(__name__)
APP = "app.py"
MARK = '"""Shows a release of hf_ssl; written by hf-ssl push --space."""'


def gradio_version():
    """Of the installed one. Raises InputError if there is none."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        raise InputError('The page is made by gradio, which is not installed: pip install "hf_ssl[demo]".') from None


def space_files(folder, repo_id):
    """{name: bytes} of the Space that shows the release in `folder`, which the Hub has as `repo_id`. Raises InputError."""
    check_repo_id("repo_id", repo_id)
    extras = ["audio", "demo"] if "audio" in find_modality(folder) else ["demo"]
    header = SpaceCardData(
        title=repo_id.split("/")[1],
        emoji="🔍",
        colorFrom="yellow",
        colorTo="blue",
        sdk="gradio",
        sdk_version=gradio_version(),
        app_file=APP,
        models=[repo_id],
        tags=["self-supervised-learning", "hf_ssl"],
    )
    card = f"---\n{header.to_yaml()}\n---\n\nWhat [{repo_id}]"
    card += f"(https://huggingface.co/{repo_id}) has learnt without labels. The same page on your machine:\n\n"
    card += f'```bash\npip install "hf_ssl[{",".join(extras)}]"\nhf-ssl demo {repo_id}\n```\n'
    app = f"{MARK}\n\nfrom hf_ssl.demo import serve\n\nserve({json.dumps(repo_id)})\n"
    requirements = f"hf_ssl[{','.join(extras)}]=={version('hf_ssl')}\n"
    return {APP: app.encode(), "requirements.txt": requirements.encode(), CARD: card.encode()}


def push_space(files, repo_id, *, private=False):
    """Publish the files of a Space as `repo_id`, in one commit; returns the commit's hash. private: for a new one.

    Raises HubError, and one that somebody else has filled stays as it is.
    """
    api = HfApi()
    create = lambda: api.create_repo(  # noqa: E731
        repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
    )
    persistently(create, repo_id, "create")
    persistently(lambda: _check_ours(api, repo_id), repo_id, "read")
    push = lambda: commit_files(api, repo_id, None, files, "Page of the release", "space")  # noqa: E731
    commit = persistently(push, repo_id, "write to")
    logger.info("%s/spaces/%s is at %s", api.endpoint, repo_id, commit[:10])
    if private:
        logger.info("It reads a private model: give the Space a secret HF_TOKEN that may read it.")
    return commit


def _check_ours(api, repo_id):
    if not api.file_exists(repo_id, APP, repo_type="space"):
        return
    with open(api.hf_hub_download(repo_id, APP, repo_type="space"), encoding="utf-8") as file:
        if file.readline().rstrip("\n") != MARK:
            raise HubError(f"The Space '{repo_id}' has an {APP} of its own: remove it, or choose another name.")


__all__ = ["gradio_version", "push_space", "space_files"]
