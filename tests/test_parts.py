"""The parts that methods are made of."""

import hf_ssl.methods._random as random_numbers


def test_no_two_streams_are_alike():
    streams = {name: value for name, value in vars(random_numbers).items() if name.endswith("_STREAM")}
    of_tokens = {name: streams.pop(name) for name in list(streams) if name.startswith("HIDDEN_")}
    first_view = streams.pop("VIEW_STREAM")
    views = range(first_view, first_view + 99)
    assert len({*streams.values(), *views}) == len(streams) + 99
    assert len({*of_tokens.values(), streams["NEGATIVES_STREAM"]}) == len(of_tokens) + 1
