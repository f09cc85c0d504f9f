"""Pretrain by contrastive predictive coding on audio (van den Oord et al. 2018).

hf-ssl pretrain cpc_audio                                    # the embedded speech, a few minutes on a CPU
hf-ssl pretrain cpc_audio --dataset_name path/to/audio --output_dir runs/mine
hf-ssl pretrain cpc_audio --num_processes 8 --backbone paper --dataset_name openslr/librispeech_asr \\
    --dataset_config_name clean --train_split train.100 --streaming --max_steps 300000
"""

from transformers import Wav2Vec2FeatureExtractor

from hf_ssl import CPCAudioForPreTraining
from hf_ssl.cli import Preset, audio_data, build_model, parse_arguments, pretrain
from hf_ssl.errors import run_script
from hf_ssl.training.arguments import AudioArguments

# section 3.1: Adam at 2e-4, 8 GPUs with 8 windows of 20,480 samples each, 300,000 steps
PAPER = dict(
    output_dir="outputs/cpc_audio", per_device_train_batch_size=8, num_train_epochs=300, learning_rate=8e-4,
    lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.999, eval_protocols="phones,linear_probe",
)  # fmt: skip


def cpc(channels, negative_policy):
    encoder = dict(model_type="ssl_cpc_audio_model", conv_size=channels, hidden_size=256)
    return dict(backbone_config=encoder, negative_policy=negative_policy)


# chosen by phones of held-out training files: narrower, negatives from the window itself, a higher rate that falls
MINUTES = PAPER | dict(
    num_train_epochs=70, learning_rate=6.4e-2, lr_scheduler_type="cosine", warmup_steps=0.05, cpu_threads=1,
)  # fmt: skip
PRESETS = {
    "narrow": Preset(cpc(128, "current"), MINUTES, "minutes on a CPU, minutes of speech"),
    "medium": Preset(cpc(256, "current"), MINUTES, "an hour on a CPU, an hour of speech"),
    "paper": Preset(cpc(512, "mixed"), PAPER, "the paper's, 100 hours of speech"),
}


def main():
    config, args = parse_arguments(CPCAudioForPreTraining, PRESETS, AudioArguments, __doc__)
    windows, decoder = audio_data(config, args)
    model = build_model(CPCAudioForPreTraining, config, args)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    pretrain(model, windows, decoder, args, extractor)


if __name__ == "__main__":
    run_script(main)
