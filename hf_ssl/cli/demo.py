"""The command `demo`: a page in the browser that shows what a release can do."""

import argparse

from ..errors import InputError
from ..evaluation import find_modality
from ..hub.space import gradio_version
from .parse import set_up_logging

COLUMNS = ("image", "text", "audio")


def demo_command(arguments):
    """Open a page of this machine on a release or any checkpoint: what its method can do, neighbours, a map."""
    parser = argparse.ArgumentParser(prog="hf-ssl demo", description=demo_command.__doc__)
    parser.add_argument("name", metavar="name_or_path", help="Folder or Hub id.")
    parser.add_argument("--dataset_name", help="Hub id, folder or glob of files; none: the embedded sample.")
    parser.add_argument("--dataset_config_name", dest="config_name", help="Configuration of the data set.")
    parser.add_argument("--split", help="None: the first of test, validation and train that there is.")
    for kind in COLUMNS:
        parser.add_argument(f"--{kind}_column", help=f"Column of {kind}s; found by type or name.")
    parser.add_argument("--label_column", help="Column of labels; found by type or name, none is needed.")
    parser.add_argument("--max_samples", type=int, default=2000, help="Draw so many rows; default: 2000.")
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.add_argument("--seed", type=int, default=0, help="Of the rows that are drawn.")
    parser.add_argument("--port", type=int, help="None: the first free one from 7860 on.")
    parser.add_argument("--share", action="store_true", help="Also a public address, by a tunnel of gradio's.")
    args = vars(parser.parse_args(arguments))
    set_up_logging()
    gradio_version()
    read = find_modality(args["name"], args["revision"]).split(" and ")
    for kind in COLUMNS:
        if args[f"{kind}_column"] and kind not in read:
            raise InputError(
                f"The argument --{kind}_column is not for '{args['name']}', which reads {' and '.join(read)}."
            )
    from ..demo import serve  # takes seconds to import

    serve(**args)
