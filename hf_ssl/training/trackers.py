"""Where the log of a run goes besides its folder: the trackers of Accelerate, which get its warnings too."""

import logging
import os
import secrets
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from accelerate.tracking import get_available_trackers

from ..errors import InputError
from .records import public_run, redact, without_places

logger = logging.getLogger(__name__)
PROJECT = "hf_ssl"
OURS = logging.getLogger("hf_ssl")


def tracker_names(report_to):
    """What Accelerate takes as `log_with`. Raises InputError if a package is not installed, which Accelerate passes over."""
    names = [name for name in report_to.split(",") if name != "none"]
    available = {tracker.value for tracker in get_available_trackers()}
    for name in names:
        if name not in available | {"all"}:
            package = '"hf_ssl[track]"' if name == "trackio" else name
            raise InputError(f"report_to: the package of the tracker {name} is not installed: pip install {package}.")
    return names


class Tracking(logging.Handler):
    """A context: the trackers of a run on the main process, nothing on the others.

    What is warned of while it is open, by `warnings` or by a logger of hf_ssl, is an alert in trackers that have alerts
    (trackio, wandb), a text in TensorBoard, and elsewhere a scalar, `warnings`, that counts them. Tokens and the places of
    local files are left out of whatever is sent.

    run, facts: as `begin_run` gives them; the name of the run there, and where its log can be seen, become
    `facts["tracking"]`, which the card reads and a run that is taken up goes on with. step: of the checkpoint, 0 for a new run.
    """

    def __init__(self, accelerator, run, facts, step):
        super().__init__(logging.WARNING)
        self.accelerator, self.step, self.count, self.show_before = accelerator, step, 0, None
        begun = run.get("facts", {}).get("tracking") if step else None
        if begun:
            facts["tracking"] = begun
        if not accelerator.is_main_process or not accelerator.log_with:
            return
        folder = Path(run["arguments"]["output_dir"])
        name = begun["run"] if begun else f"{redact(folder.resolve().name)}-{secrets.token_hex(3)}"
        arguments = {key: value for key, value in public_run(run)["arguments"].items() if value is not None}
        settings = {
            "trackio": {"name": name, "resume": "allow", "embed": False},
            "tensorboard": {"purge_step": step + 1} if step else {},  # what was logged after the checkpoint
        }
        accelerator.init_trackers(PROJECT, config=arguments, init_kwargs=settings)
        facts["tracking"] = {"run": name, "pages": _pages(accelerator.trackers)}
        commands = {"tensorboard": f"tensorboard --logdir {folder / 'logs'}"} | facts["tracking"]["pages"]
        for tracker in accelerator.trackers:
            logger.info(
                "%s gets the log of this run, '%s': %s", tracker.name, name, commands.get(tracker.name, "see there")
            )

    def log(self, values, step):
        self.step = step
        self.accelerator.log(values, step=step)

    def emit(self, record):
        self._alert(record.name, record.getMessage())

    def _show(self, message, category, *place, **more):
        self.show_before(message, category, *place, **more)
        self._alert(category.__name__, str(message))

    def _alert(self, title, text):
        self.count += 1
        text = without_places(redact(text))
        for tracker in self.accelerator.trackers:
            if hasattr(tracker.tracker, "alert"):
                with redirect_stdout(None):  # the user has read it
                    tracker.tracker.alert(title=title, text=text)
            elif tracker.name == "tensorboard":
                tracker.log({f"warnings/{title}": text}, step=self.step)
            else:
                tracker.log({"warnings": self.count}, step=self.step)

    def __enter__(self):
        if self.accelerator.trackers:
            OURS.addHandler(self)
            self.show_before, warnings.showwarning = warnings.showwarning, self._show
        return self

    def __exit__(self, kind, error, _):
        if not self.accelerator.trackers:
            return
        if isinstance(error, Exception):
            self._alert(kind.__name__, str(error))
        OURS.removeHandler(self)
        warnings.showwarning = self.show_before
        # end_training() would also take the processes apart, which evaluate next
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _pages(trackers):
    """{tracker: the address of what it shows, or the command that shows it} of those that others may see too."""
    pages = {}
    for tracker in trackers:
        if tracker.name == "trackio":
            space = os.environ.get("TRACKIO_SPACE_ID")
            address = space and "/" in space and f"https://huggingface.co/spaces/{space}"
            pages["trackio"] = address or f"trackio show --project {PROJECT}"
        elif tracker.name == "wandb" and getattr(tracker.tracker, "url", None):
            pages["wandb"] = tracker.tracker.url
    return pages


__all__ = ["Tracking", "tracker_names"]
