"""How a run is published: release.py writes the folder, card.py its card, transfer.py speaks to the Hub, space.py writes the
Space that shows it, conversion/ turns the checkpoints of a method's authors into releases, export/ releases into files for
other runtimes."""

from .card import write_card
from .release import check_arguments, check_run, finish_run, push_save, save_release
from .space import push_space, space_files
from .transfer import HubError, push_release, verify

__all__ = [
    "HubError",
    "check_arguments",
    "check_run",
    "finish_run",
    "push_release",
    "push_save",
    "push_space",
    "save_release",
    "space_files",
    "verify",
    "write_card",
]
