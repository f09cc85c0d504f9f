"""Publish a release folder on the Hub, in one commit; unchanged files are not sent again.

hf-ssl push outputs/mae org/mae-fashion --private
hf-ssl push outputs/mae org/mae-fashion --revision v2 --tag v2.0 --training_state

The token is that of `hf auth login` or HF_TOKEN.
"""

import argparse

from hf_ssl import push_release
from hf_ssl.cli import set_up_logging
from hf_ssl.errors import run_script


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="What a run or a conversion has left.")
    parser.add_argument("repo_id", help="org/name; made if there is none.")
    parser.add_argument("--private", action="store_true", help="Make a private repository.")
    parser.add_argument("--revision", help="A branch; made if there is none.")
    parser.add_argument("--tag", help="A name for the commit, such as v1.0.")
    parser.add_argument("--training_state", action="store_true", help="Also the newest checkpoint, to go on from.")
    parser.add_argument("--message", help="Of the commit.")
    set_up_logging()
    push_release(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_script(main)
