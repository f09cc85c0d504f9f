"""Turn a published checkpoint of another repository into a release folder, which plain transformers loads.

    hf-ssl convert mae mae_pretrain_vit_base.pth --output_dir mae-vit-base        # encoder alone
    hf-ssl convert mae mae_pretrain_vit_base_full.pth --output_dir mae-base-full  # with decoder
    hf-ssl convert moco moco_v2_800ep_pretrain.pth.tar --output_dir moco-v2-r50
    hf-ssl convert simclr resnet50-1x.pth --output_dir simclr-r50
    hf-ssl convert clip ViT-B-32.pt --tokenizer_name openai/clip-vit-base-patch32 --output_dir clip-b32
    hf-ssl convert cpc_audio 60k_epoch4-d0f474de.pt --output_dir cpc-60k
    hf-ssl convert word2vec GoogleNews-vectors-negative300.bin --output_dir google-news

A further kind of checkpoint is a file in hf_ssl/hub/conversion, with one function from the arguments to a Release and one
that adds its flags, and one line in CONVERTERS.
"""

import argparse
from pathlib import Path

import transformers

from hf_ssl.errors import InputError, run_script
from hf_ssl.hub.conversion.clip import clip_flags, convert_clip
from hf_ssl.hub.conversion.cpc_audio import convert_cpc_audio
from hf_ssl.hub.conversion.mae import convert_mae, mae_flags
from hf_ssl.hub.conversion.moco import convert_moco, moco_flags
from hf_ssl.hub.conversion.release import write_release
from hf_ssl.hub.conversion.simclr import convert_simclr
from hf_ssl.hub.conversion.word2vec import convert_word2vec

CONVERTERS = {  # kind of checkpoint -> (arguments -> Release, its own flags)
    "clip": (convert_clip, clip_flags),
    "cpc_audio": (convert_cpc_audio, lambda parser: None),
    "mae": (convert_mae, mae_flags),
    "moco": (convert_moco, moco_flags),
    "simclr": (convert_simclr, lambda parser: None),
    "word2vec": (convert_word2vec, lambda parser: None),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join(CONVERTERS) + "}")
    for name, (convert, add_flags) in CONVERTERS.items():
        kind = kinds.add_parser(name, help=convert.__doc__.split("\n")[0], description=convert.__doc__)
        kind.add_argument(
            "file",
            type=Path,
            help="the checkpoint: .pt, .pth, .pth.tar, .bin or .safetensors; word vectors: .bin or .txt",
        )
        kind.add_argument("--output_dir", type=Path, required=True, help="a folder that is empty or does not exist")
        add_flags(kind)
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    folder = args.output_dir.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"output_dir '{args.output_dir}' is not an empty folder: expected a new one.")
    release = CONVERTERS[args.kind][0](args)
    write_release(release, folder, args.file)
    for note in release.notes:
        print(note)
    whole = " and the whole model in pretraining/" if release.pretraining else ""
    print(f"Wrote {args.output_dir}: {type(release.encoder).__name__}{whole}.")


if __name__ == "__main__":
    run_script(main)
