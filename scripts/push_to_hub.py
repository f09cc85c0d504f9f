"""Publish a release folder on the Hub, in one commit; unchanged files are not sent again.

hf-ssl push outputs/mae org/mae-fashion --private
hf-ssl push outputs/mae org/mae-fashion --space     # and a page on the Hub that shows what it can do
hf-ssl push outputs/mae org/mae-fashion --revision v2 --tag v2.0 --training_state

The token is that of `hf auth login` or HF_TOKEN.
"""

import argparse

from hf_ssl import push_release
from hf_ssl.cli import set_up_logging
from hf_ssl.errors import run_script
from hf_ssl.hub import push_space, space_files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="What a run or a conversion has left.")
    parser.add_argument("repo_id", help="org/name; made if there is none.")
    parser.add_argument("--private", action="store_true", help="Make a private repository.")
    parser.add_argument("--revision", help="A branch; made if there is none.")
    parser.add_argument("--tag", help="A name for the commit, such as v1.0.")
    parser.add_argument("--training_state", action="store_true", help="Also the newest checkpoint, to go on from.")
    parser.add_argument("--message", help="Of the commit.")
    parser.add_argument("--space", action="store_true", help="Also the Space org/name, whose page shows the release.")
    args = vars(parser.parse_args())
    set_up_logging()
    # before the release, so that nothing is pushed if it cannot be written
    page = space_files(args["folder"], args["repo_id"]) if args.pop("space") else None
    push_release(**args)
    if page is not None:
        push_space(page, args["repo_id"], private=args["private"])


if __name__ == "__main__":
    run_script(main)
