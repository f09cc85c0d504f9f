"""Write the encoder of a release, or of any model that AutoModel loads, for another runtime or library.

hf-ssl export outputs/mae --format onnx         # runs in onnxruntime; batch size and text length are free
hf-ssl export outputs/mae --format torch        # torch.export's .pt2: runs with torch alone
hf-ssl export outputs/mae --format timm         # a ResNet or ViT that timm.create_model loads
hf-ssl export org/name --format torchvision --output_dir runs/torchvision

Features of the file and of the model are compared before it is there: they differ by at most 1e-4.
"""

import argparse
from pathlib import Path

import transformers

from hf_ssl.cli import set_up_logging
from hf_ssl.errors import run_script
from hf_ssl.hub.export import FORMATS, export_release


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="A release, a folder or a Hub id.")
    parser.add_argument("--format", required=True, choices=FORMATS, help="What is written.")
    parser.add_argument("--output_dir", help="A new folder; default: outputs/<name>-<format>.")
    args = parser.parse_args()
    set_up_logging()
    transformers.logging.disable_progress_bar()
    output_dir = args.output_dir or Path("outputs") / f"{Path(args.model).resolve().name}-{args.format}"
    code = export_release(args.model, args.format, output_dir)
    print(f"Wrote {output_dir}. To load it:\n\n{code}")


if __name__ == "__main__":
    run_script(main)
