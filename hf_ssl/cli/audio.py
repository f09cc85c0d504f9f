"""Audio as a run's data."""

import logging

from ..data import WaveformBatches, audio_rows, audio_windows, speaker_column
from ..errors import InputError
from ..evaluation.processes import process_state
from .rows import log_rows, training_rows

logger = logging.getLogger(__name__)


def audio_data(config, args):
    """(windows, their decoder) of the audio that `--dataset_name` names."""
    files, column = audio_rows(training_rows(args, "speech"), args.audio_column)
    log_rows(args, files, "recordings")
    needed_by = "windows_per_speaker" if args.windows_per_speaker else None
    if config.negative_policy.startswith("same_speaker"):
        needed_by = f"negative_policy '{config.negative_policy}'"
    speakers = speaker_column(files, args.speaker_column, needed_by)
    frames = args.window_samples // config.backbone_config.inputs_to_logits_ratio
    if frames <= config.prediction_steps:
        raise InputError(
            f"window_samples {args.window_samples} are {frames} frames: expected more than prediction_steps, "
            f"{config.prediction_steps}."
        )
    if config.negative_policy.startswith("same_speaker") and not args.windows_per_speaker:
        logger.warning("Few windows of a batch will share a speaker: --windows_per_speaker puts some together.")
    with process_state().main_process_first():  # which reads the headers for all
        windows = audio_windows(files, column, args.window_samples, speakers)
    return windows, WaveformBatches(args.window_samples, args.windows_per_speaker)
