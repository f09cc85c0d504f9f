"""Evaluation of speech encoders: frames and their labels, utterances by themselves, MFCC, training with labels, refusals."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from jinja2 import Environment, FileSystemLoader
from sklearn.linear_model import LogisticRegression
from test_scripts import run
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from hf_ssl.data import load_split
from hf_ssl.errors import InputError
from hf_ssl.evaluation import classify_frames, evaluate_audio, extract, load_audio_encoder, mfcc_encoder, results_table
from hf_ssl.evaluation.protocols.phones import (
    Phones,
    Utterance,
    accuracies,
    find_segments,
    labelled_frames,
    read_splits,
)
from hf_ssl.evaluation.protocols.speakers import Speakers
from hf_ssl.evaluation.protocols.supervised import Supervised, train_network
from hf_ssl.evaluation.sources import Source
from hf_ssl.hub.card import CARDS, _eval_results

RATE = 16_000
BRIEF = {"min_steps": 300}
TONES = {"low": 300, "high": 2400, "pau": 0}  # the phones of a language of tones, in hertz
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (32,) * 3,
    "conv_kernel": (16, 10, 8), "conv_stride": (8, 5, 4), "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def encoder_folder(folder, **changes):
    """A tiny wav2vec 2.0 of 100 frames a second, at random initialisation."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(**SIZES | changes)
    Wav2Vec2Model(config).save_pretrained(folder)
    masks = config.feat_extract_norm == "layer"
    Wav2Vec2FeatureExtractor(return_attention_mask=masks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["group", "layer"])
def either_norm(request, tmp_path_factory):
    changes = {"feat_extract_norm": request.param, "do_stable_layer_norm": request.param == "layer"}
    return load_audio_encoder(encoder_folder(tmp_path_factory.mktemp(request.param), **changes))


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory):
    return encoder_folder(tmp_path_factory.mktemp("wav2vec2"))


def flac(waveform):
    file = io.BytesIO()
    soundfile.write(file, waveform, RATE, format="flac")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Two speakers, one loud and bright with overtones, whose phones are tones; the last utterance of each part is broken."""
    folder, generator = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 9)):
        rows = {"file": [], "speaker_id": [], "spans": []}
        for number in range(count):
            ends = np.cumsum(generator.uniform(0.1, 0.4, size=generator.integers(4, 8)))
            spans = [
                {"start": start, "end": end, "tone": str(generator.choice(list(TONES)))}
                for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True)
            ]
            time = np.arange(int(ends[-1] * RATE)) / RATE
            hertz = np.zeros(len(time))
            for span in spans:
                hertz[(time >= span["start"]) & (time < span["end"])] = TONES[span["tone"]]
            sound = np.sin(2 * np.pi * hertz * time) + (number % 2) * 0.5 * np.sin(6 * np.pi * hertz * time)
            sound = 0.3 * (sound + 0.01 * generator.normal(size=len(time))) / (1 + number % 2)
            rows["file"].append(flac(sound) if number < count - 1 else {"bytes": b"RIFF", "path": None})
            rows["speaker_id"].append(1089 if number % 2 else 61)
            rows["spans"].append(spans)
        value = datasets.Value
        span = {"start": value("float32"), "end": value("float32"), "tone": value("string")}
        file = {"bytes": value("binary"), "path": value("string")}  # an Audio column would want torchcodec to encode
        kinds = {"file": file, "speaker_id": value("int64"), "spans": datasets.List(span)}
        data = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        data = data.cast_column("file", datasets.Audio(decode=False))
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def both_parts(encoder, source):
    rows = source.train_rows(), source.test_rows()
    segments = find_segments(*rows)
    return *read_splits(encoder, source, *rows, segments), segments


# frames


def test_a_frame_has_the_label_of_the_segment_that_covers_its_centre():
    spans = np.array([0.0, 0.1, 0.25]), np.array([0.1, 0.2, 0.3]), np.array([4, 0, 7])
    utterance = Utterance(torch.zeros(1), *spans)
    centres = np.array([0.0, 0.0999, 0.1, 0.1999, 0.2, 0.24, 0.25, 0.3, 9.0])
    assert utterance.at(centres).tolist() == [4, 4, 0, 0, -1, -1, 7, -1, -1]
    assert utterance.at(np.array([-0.1])).tolist() == [-1]
    assert Utterance(torch.zeros(1), *(np.empty(0),) * 3).at(centres).tolist() == [-1] * 9


@pytest.mark.parametrize("stride", [(8, 5, 4), (8, 5, 8)])
def test_frames_stand_where_the_sound_is(stride, tmp_path):
    """The network's, whatever its stride, and those of MFCC."""
    encoder = load_audio_encoder(encoder_folder(tmp_path, conv_stride=stride))
    mfcc = mfcc_encoder(encoder)
    assert encoder.hop == pytest.approx(np.prod(stride) / RATE) and mfcc.hop == pytest.approx(0.01)
    waveform = 1e-3 * torch.randn(RATE)
    waveform[8000:8400] = torch.randn(400)  # half a second in
    [values] = mfcc.preprocess([waveform])
    coefficients = mfcc.frames(values[None])[0]
    assert coefficients.shape == (100, 39)
    assert mfcc.centres(100)[coefficients[:, 0].argmax()] == pytest.approx(0.5125, abs=0.008)
    assert torch.allclose(coefficients[2:-2, 13], slow_slope(coefficients[:, 0]), atol=1e-4)


def slow_slope(x):
    """HTK's formula: sum over n of n (x[t + n] - x[t - n]), divided by 2 sum n^2."""
    return torch.stack([sum(n * (x[t + n] - x[t - n]) for n in (1, 2)) / 10 for t in range(2, len(x) - 2)])


def test_features_do_not_depend_on_the_rest_of_the_batch_nor_on_gain(either_norm, tones):
    data, columns, label_column = either_norm.find_columns(load_split(str(tones), "test"))
    assert columns == ("file",) and label_column == "speaker_id"
    together, alone = (extract(either_norm, data, columns, label_column, batch_size=size) for size in (16, 1))
    assert torch.equal(together.features, alone.features) and together.features.shape == (8, 32)
    assert together.skipped == 1 and together.rows.tolist() == list(range(8))
    waveform = either_norm.read(data[0]["file"])
    quiet, loud = either_norm(either_norm.preprocess([1e-2 * waveform, waveform]))
    assert torch.allclose(quiet, loud, atol=1e-3) and quiet.std() > 0.01
    assert either_norm.too_long([torch.zeros(61 * RATE), waveform]) == 1


def test_what_cannot_be_heard_is_broken(either_norm):
    silence = flac(np.zeros(RATE))
    assert either_norm(either_norm.preprocess([either_norm.read(silence)])).isfinite().all()
    for value in (flac(np.zeros(100)), {"bytes": b"", "path": None}, None, {"bytes": silence["bytes"][:20]}):
        assert either_norm.read(value) is None
    assert either_norm.read({"array": np.full(RATE, np.nan), "sampling_rate": RATE}) is None


# classification


def test_frames_that_hold_their_labels_are_told_apart_and_others_as_by_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (3000,), generator=generator)
    told = torch.eye(5)[labels] * 7 + 100
    assert torch.equal(classify_frames(told[:2000], labels[:2000], told[2000:], 5, **BRIEF), labels[2000:])
    mixed = torch.eye(5)[labels] @ torch.randn(5, 8, generator=generator) + torch.randn(3000, 8, generator=generator)
    exact = LogisticRegression(C=1e6, max_iter=1000).fit(mixed[:2000], labels[:2000])
    expected = exact.score(mixed[2000:], labels[2000:])
    predicted = classify_frames(mixed[:2000], labels[:2000], mixed[2000:], 5, **BRIEF)
    assert (predicted == labels[2000:]).float().mean() == pytest.approx(expected, abs=0.02)
    assert torch.equal(predicted, classify_frames(mixed[:2000], labels[:2000], mixed[2000:], 5, **BRIEF))
    angle = torch.rand(3000, generator=generator) * 6.283  # a ring around a disc, which no line parts
    ring = torch.stack([angle.cos(), angle.sin()], 1) * (1 + (labels > 2))[:, None]
    flat, deep = (classify_frames(ring, (labels > 2).long(), ring, 2, hidden, **BRIEF) for hidden in (0, 64))
    assert (deep == (labels > 2)).float().mean() > 0.99 > 0.8 > (flat == (labels > 2)).float().mean()


def test_accuracy_is_told_without_pauses_and_with_them():
    labels, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1])
    assert accuracies("phones", predicted, labels, torch.tensor([0])) == {"phones": 50.0, "phones_with_pauses": 75.0}
    assert accuracies("phones", predicted, labels, torch.tensor([3])) == {"phones": 75.0}


def test_mfcc_tells_the_embedded_phones(wav2vec2):
    mfcc = mfcc_encoder(load_audio_encoder(wav2vec2))
    train, test, segments = both_parts(mfcc, Source("speech", max_samples=16))
    assert segments.column == "phones" and len(segments.names) == 41 and segments.pauses.tolist() == [0]
    (frames, labels), (test_frames, test_labels) = labelled_frames(mfcc, train), labelled_frames(mfcc, test)
    found = accuracies(
        "phones", classify_frames(frames, labels, test_frames, 41, **BRIEF), test_labels, segments.pauses
    )
    most = (test_labels == test_labels.mode().values).float().mean().item()
    assert found["phones"] > 30 and found["phones_with_pauses"] > 100 * most + 20  # 39 and 43 against 6


def test_a_network_trained_with_labels_tells_tones_and_speakers(wav2vec2, tones):
    encoder = load_audio_encoder(wav2vec2)
    train, test, segments = both_parts(encoder, Source("speech", str(tones)))
    before = [parameter.clone() for parameter in encoder.model.parameters()]
    classify = train_network(encoder, train, len(segments.names), "tones", epochs=0, min_steps=80)
    right = torch.cat([(found := classify(u.waveform)).argmax(1) == u.at(encoder.centres(len(found))) for u in test])
    assert right.float().mean() > 0.8
    again = train_network(encoder, train, len(segments.names), "tones", epochs=0, min_steps=3)
    twice = train_network(encoder, train, len(segments.names), "tones", epochs=0, min_steps=3)
    assert torch.equal(again(test[0].waveform), twice(test[0].waveform))
    assert all(torch.equal(*pair) for pair in zip(before, encoder.model.parameters(), strict=True))


@pytest.mark.parametrize("without", [None, "spans", "speaker_id"])
def test_training_with_labels_gives_what_the_data_have_labels_for(without, wav2vec2, tones):
    encoder = load_audio_encoder(wav2vec2)
    source = Source("speech", str(tones), max_samples=6)
    load = source._load
    source._load = lambda split: load(split) if without is None else load(split).remove_columns(without)
    protocol = Supervised(epochs=0)
    [(row, found)] = protocol.run({"pretrained": encoder, "random_initialisation": encoder}, source, None).items()
    columns = {"spans": {"phones", "phones_with_pauses"}, "speaker_id": {"speakers"}}
    left = [names for column, names in columns.items() if column != without]
    assert row == "supervised" and set(found) == set().union(*left) and set(found) <= set(protocol.METRICS)
    assert source.found["train_utterances"] in (5, 6)


# the whole


def test_evaluate_py_takes_speech(wav2vec2, tones, tmp_path):
    common = [wav2vec2, "--dataset_name", tones, "--output_dir", tmp_path]
    protocols = "linear_probe,tsne,phones"
    code, out, err = run("evaluate.py", *common, "--protocols", protocols)
    assert code == 0, err
    table = out.strip().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["MFCC", "Random initialisation", "Pretrained"]
    assert "| phones | phones with pauses | linear probe (speaker_id) |" in table[0]
    results = json.loads((tmp_path / "eval_results.json").read_text())
    found, told = results["results"], results["dataset"]
    assert found["mfcc"]["phones"] > 90 and found["mfcc"]["linear_probe"] > 90
    assert told["broken_audios"] == 2 and told["train_rows"] == told["train_utterances"] == 23 and told["classes"] == 2
    assert "frames" in results["settings"]["phones"] and "optimizer" in results["settings"]["linear_probe"]
    assert (tmp_path / "images/tsne.png").is_file()
    entry = _eval_results([results], "audio")[0]
    assert (entry.task_type, entry.metric_type) == ("audio-classification", "accuracy")
    for arguments, message in (
        (["--text_column", "title"], "The argument --text_column is not for an encoder of audios"),
        (["--segments_column", "words"], "segments_column 'words' is not in the data set: found the columns"),
        (["--segments_column", "file"], "segments_column 'file' holds no lists of a start, an end and a label"),
    ):
        code, _, err = run("evaluate.py", *common, *arguments)
        assert code == 1 and err.strip().splitlines()[-1].startswith("error: ") and message in err, err


def test_data_that_lack_labels_or_segments(wav2vec2, tones, tmp_path):
    for split in ("train", "test"):
        rows = load_split(str(tones), split)
        rows.remove_columns("spans").to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    for asked, message in (
        (
            {"protocols": ["phones"]},
            "No column of segments was found among .*speaker_id.*: name it with --segments_column",
        ),
        ({"audio_column": "sound"}, "audio_column 'sound' is not in the data set: found the columns"),
        ({"label_column": "accent"}, "label_column 'accent' is not in the data set"),
        ({"protocols": ["fine_tune"]}, "Protocol 'fine_tune' is unknown: expected some of knn"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_audio(wav2vec2, str(tmp_path), **asked)
    results = evaluate_audio(wav2vec2, str(tmp_path), protocols=["knn", "linear_probe"], baselines=False)
    assert results_table(results).startswith("| | knn (speaker_id) | linear probe (speaker_id) |")


def spoken(spans, count=4, length=RATE):
    """Rows of one second of noise with the same spans."""
    sound = 0.1 * np.random.default_rng(0).normal(size=length)
    span = {"start": datasets.Value("float32"), "end": datasets.Value("float32"), "phone": datasets.Value("string")}
    rows = {"audio": [flac(sound)] * count, "phones": [[dict(zip(span, row, strict=True)) for row in spans]] * count}
    kinds = {
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "phones": datasets.List(span),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


@pytest.fixture(scope="module")
def mfcc(wav2vec2):
    return mfcc_encoder(load_audio_encoder(wav2vec2))


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 500, "a"), (500, 1000, "b")],  # milliseconds
        [(0.5, 0, "a"), (1, 0.5, "b")],
        [(1.2, 1.4, "a"), (1.4, 1.8, "b")],
        [(-1, 0.5, "a"), (0.5, 1.8, "b")],
    ],
    ids=["milliseconds", "backwards", "beyond the end", "shifted"],
)
def test_segments_outside_their_recordings_are_refused(spans, mfcc):
    rows = spoken(spans)
    with pytest.raises(
        InputError, match="8 of 8 segments in 'phones' lie outside .*: expected start and end in seconds"
    ):
        read_splits(mfcc, Source("speech"), rows, rows, find_segments(rows, rows))


def test_some_bad_segments_are_left_out_and_counted(mfcc, caplog):
    rows = spoken([(0, 0.5, "a"), (0.5, 0.5, "b"), (0.5, 0.8, None), (0.8, 1.05, "b")])
    segments = find_segments(rows, rows)
    assert segments.names == ["a", "b"]
    [utterance, *_], _ = read_splits(mfcc, Source("speech"), rows, rows, segments)
    assert utterance.at(np.array([0.2, 0.6, 0.9])).tolist() == [0, -1, 1]
    assert (
        "4 of 12 segments in 'phones' lie outside their recording or have no length, and are left out" in caplog.text
    )


def test_one_phone_is_said_to_tell_nothing(mfcc, tmp_path, caplog):
    for split in ("train", "test"):
        spoken([(0, 1, "a")], count=1).to_parquet(tmp_path / f"{split}.parquet")
    assert Phones().run({"pretrained": mfcc}, Source("speech", str(tmp_path)), None) == {
        "pretrained": {"phones": 100.0}
    }
    assert "All frames are of one phone, 'a': what is right of them says nothing" in caplog.text


def test_recordings_too_short_for_a_window_are_told(mfcc):
    rows = spoken([(0, 1, "a")], length=10)
    message = (
        "holds no audio that can be decoded, the last because: the audio has 10 samples at 16000 Hz, less than 0.025 s"
    )
    with pytest.raises(InputError, match=message):
        read_splits(mfcc, Source("speech"), rows, rows, find_segments(rows, rows))


def test_models_of_spectrograms_and_without_frames_are_refused(tmp_path):
    config = ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, max_length=64)
    ASTModel(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=64).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not give a vector a frame of a waveform"):
        load_audio_encoder(tmp_path)


def test_the_card_of_a_speech_encoder_says_how_to_use_it():
    template = Environment(loader=FileSystemLoader(CARDS)).get_template("audio_encoder.md")
    config, known = {"model_type": "ssl_x", "hidden_size": 8}, dict.fromkeys(("facts", "measured", "arguments"), {})
    card = template.render(card_data="x: 1", name="ears", path="me/ears", config=config, **known)
    assert (
        "pipeline_tag: feature-extraction\n---" in card and 'AutoFeatureExtractor.from_pretrained("me/ears")' in card
    )
    assert 'AutoModel.from_pretrained("me/ears", trust_remote_code=True)' in card and "# (1, frames, 8)" in card


def test_speakers_of_utterances_by_their_frames(wav2vec2):
    """MFCC tell six voices apart, and an utterance's frames together know more than one by one."""
    mfcc = mfcc_encoder(load_audio_encoder(wav2vec2))
    numbers = Speakers().run({"pretrained": mfcc}, Source("speech"), None)["pretrained"]
    assert numbers["speakers"] > 80 and 100 / 6 + 20 < numbers["speakers_of_frames"] < numbers["speakers"]


def test_the_tables_of_cpc_keep_the_runs_that_ended_and_make_the_one_that_lacks(tones, tmp_path, monkeypatch, capfd):
    from hf_ssl.scripts.benchmarks import cpc_table

    kinds = dict.fromkeys(["phones", "linear_probe", "phones_hidden", "speakers"], 90.0)
    variants = {"supervised": 74.6, "pretrained": 66.0}
    for number, (name, (settings, _)) in enumerate((cpc_table.STEPS | cpc_table.POLICIES).items()):
        if name not in ("4 steps", "Mixed speaker"):  # the second is the run with 12 steps
            folder = tmp_path / name.replace(" ", "_").lower()
            (folder / "pretraining").mkdir(parents=True)
            (folder / "pretraining/config.json").write_text(json.dumps(settings))
            rows = {row: kinds | {"phones": phones + number} for row, phones in variants.items()}
            (folder / "eval_results.json").write_text(json.dumps({"results": rows}))
    flags = f"--dataset_name {tones} --max_steps 1 --per_device_train_batch_size 2"
    cpc_table.compare(tmp_path, flags.split())
    methods, steps, policies = (part.splitlines() for part in capfd.readouterr().out.strip().split("\n\n")[-3:])
    assert [line.split("|")[1].strip() for line in methods[2:]] == ["CPC", "Supervised"] and "77.6" in methods[3]
    made = json.loads((tmp_path / "4_steps/eval_results.json").read_text())["results"]["pretrained"]["phones"]
    assert [float(line.split("|")[2]) for line in steps[2:]] == [66.0, round(made, 1), 68.0, 69.0, 70.0]
    assert policies[2].split("|")[1:3] == [" Mixed speaker ", " 69.0 "]
    config = json.loads((tmp_path / "4_steps/pretraining/config.json").read_text())
    assert (config["prediction_steps"], config["negative_policy"]) == (4, "mixed")
    assert f"{made:.1f}" in (tmp_path / "4_steps/README.md").read_text()
    with pytest.raises(InputError, match="flags must not set --config_overrides, found '--config_overrides=x=1'"):
        cpc_table.compare(tmp_path, ["--config_overrides=x=1"])
    (tmp_path / "2_steps/pretraining/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has prediction_steps 4, expected 2"):
        cpc_table.compare(tmp_path, flags.split())
