"""Audio in, batches of windows out: formats and rates, where windows lie, in which order they come, and what is refused."""

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from processes import launch
from test_scripts import run, run_card
from transformers import Wav2Vec2FeatureExtractor

from hf_ssl import CPCAudioConfig, CPCAudioForPreTraining
from hf_ssl.cli import audio_data, build_model
from hf_ssl.data import (
    DataError,
    TrainLoader,
    WaveformBatches,
    audio_length,
    audio_rows,
    audio_windows,
    decode_audio,
    load_split,
    speaker_column,
)
from hf_ssl.data.loader import _in_runs
from hf_ssl.data.windows import speaker_id
from hf_ssl.errors import InputError
from hf_ssl.training.arguments import AudioArguments
from hf_ssl.training.loop import train

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": None}
RATES = (8000, 16000, 22050, 44100, 48000)
WINDOW = 4000


def tones(rate, seconds=2.0, start=0.0):
    """A sum of tones below 3 kHz, as a function of time."""
    time = start + np.arange(round(seconds * rate)) / rate
    return 0.2 * (np.sin(2 * np.pi * 220 * time) + np.sin(2 * np.pi * 1234 * time + 1) * np.cos(3 * time))


def encoded(samples, rate=16000, kind="flac", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind.upper(), subtype=subtype or FORMATS[kind])
    return buffer.getvalue()


def noise(length, seed=0, gain=0.1):
    return gain * np.random.default_rng(seed).standard_normal(length)


def take(batches, count):
    iterator = iter(batches)
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


def in_columns(**columns):
    return datasets.Dataset.from_dict(columns)


def streamed(data, shards=1):
    return data.to_iterable_dataset(num_shards=shards)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of three parquet shards of unequal length: the embedded speech."""
    rows = load_split(sample="speech")
    folder = tmp_path_factory.mktemp("speech")
    for number, (start, stop) in enumerate(((0, 9), (9, 45), (45, 72))):
        rows.select(range(start, stop)).to_parquet(folder / f"train-{number:05d}-of-00003.parquet", batch_size=4)
    return folder


def loader(folder, streaming=False, batch_size=4, run=4, process=0, processes=1, **options):
    """Of windows of a second, some 150."""
    rows, column = audio_rows(load_split(str(folder), streaming=streaming))
    windows = audio_windows(rows, column, 16000, speaker_column(rows))
    decoder = WaveformBatches(16000, run)
    return TrainLoader(
        windows, decoder, batch_size, 3, buffer_size=40, process=process, processes=processes, **options
    )


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", FORMATS)
def test_formats_rates_and_channels(kind, rate, tmp_path):
    stereo = np.stack([1.5 * tones(rate), 0.5 * tones(rate)], axis=1)
    raw = encoded(stereo, rate, kind)
    (tmp_path / f"a.{kind}").write_bytes(raw)
    wave = decode_audio(raw)
    assert wave.dtype == torch.float32 and len(wave) == audio_length(raw) == 32000
    inner = slice(400, -400)
    lossy = kind in ("ogg", "mp3")
    assert np.abs(wave.numpy() - tones(16000))[inner].max() < (0.05 if lossy else 2e-3)
    for value in (
        str(tmp_path / f"a.{kind}"),
        {"bytes": raw, "path": None},
        {"bytes": None, "path": tmp_path / f"a.{kind}"},
    ):
        assert torch.equal(decode_audio(value), wave)
    for start, length in ((0, 300), (1, 5000), (11025, 4000), (27777, 4223), (31000, 5000)):
        part = decode_audio(raw, start=start / 16000, seconds=length / 16000)
        torch.testing.assert_close(part, wave[start : start + length], rtol=0, atol=1e-5 if kind == "mp3" else 1e-7)


def test_a_window_does_not_decode_its_file(tmp_path, monkeypatch):
    """Of a minute at 44.1 kHz."""
    path = str(tmp_path / "long.flac")
    soundfile.write(path, noise(60 * 44100), 44100)
    counted, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(  # only counts
        soundfile.SoundFile, "read", lambda self, *args, **kw: counted.append(read(self, *args, **kw)) or counted[-1]
    )
    windows = audio_windows(in_columns(audio=[path]), "audio", 20480)
    assert len(windows) == 60 * 16000 // 20480 and not counted
    take(TrainLoader(windows, WaveformBatches(20480), 8, 0), 1)
    assert len(counted) == 8 and sum(map(len, counted)) < 8 * (1.28 * 44100 + 4 * 441)


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_windows_cover_their_files_and_move(streaming):
    """Files whose samples tell where they are: windows found in batches, by file and epoch."""
    lengths = (4000, 7999, 21000, 40000)
    ramps = [0.1 * number + np.linspace(0, 0.09, length) for number, length in enumerate(lengths)]
    data = in_columns(
        audio=[encoded(ramp, kind="wav", subtype="FLOAT") for ramp in ramps], speaker=["a", "b", "c", "d"]
    )
    counts = [length // WINDOW for length in lengths]
    windows = audio_windows(streamed(data) if streaming else data, "audio", WINDOW, "speaker")
    batches = TrainLoader(windows, WaveformBatches(WINDOW), sum(counts), 0, buffer_size=sum(counts))
    hits, starts = [np.zeros(length) for length in lengths], []
    for batch in take(batches, 30):  # an epoch each
        found = Counter()
        starts.append([])
        for wave, speaker in zip(batch["input_values"], batch["speaker_ids"].tolist(), strict=True):
            file = [speaker_id(name) for name in "abcd"].index(speaker)
            start = round((wave[0].item() - 0.1 * file) / 0.09 * (lengths[file] - 1))
            hits[file][start : start + WINDOW] += 1
            found[file] += 1
            starts[-1].append((file, start))
        assert [found[file] for file in range(4)] == counts
    assert all(hit.min() > 0 for hit in hits) and hits[0].min() == 30  # the first has no room
    assert 0.9 < hits[3].mean() / 30 <= 1 and hits[3].min() > 6
    assert len({tuple(sorted(epoch)) for epoch in starts}) == 30


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_a_loader_of_windows_goes_on_where_its_state_says(shards, streaming, workers, processes):
    for process in range(processes):
        options = dict(streaming=streaming, num_workers=workers, process=process, processes=processes)
        through, whole, states = loader(shards, **options), [], []
        batches = iter(through)
        for _ in range(60):
            whole.append(next(batches))
            states.append(json.dumps(through.state_dict()))
        batches.close()
        assert through.epoch >= 1, "the test must cross an epoch"
        for stop in (7, 52):
            second = loader(shards, **options)
            second.load_state_dict(json.loads(states[stop - 1]))
            for batch, expected in zip(take(second, 4), whole[stop:], strict=False):
                assert batch.keys() == expected.keys() == {"input_values", "speaker_ids", "sample_seeds"}
                assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_each_window_of_a_stream_once_an_epoch(shards):
    count = len(loader(shards).data)
    for processes, workers in ((1, 0), (2, 2)):
        found = Counter()
        for process in range(processes):
            part = loader(shards, True, run=0, process=process, processes=processes, num_workers=workers)
            for batch in take(part, 2 * count // 4 // processes):
                found.update(batch["sample_seeds"].tolist())
        assert set(found.values()) == {1} and sum(found.values()) > 2 * count - 8


def test_a_file_of_a_stream_is_held_once(shards):
    rows, column = audio_rows(load_split(str(shards), streaming=True))
    row, other = [next(iter(rows.iter(batch_size=2)))["audio"] for rows in [audio_windows(rows, column, WINDOW)]][0]
    assert row["bytes"] is other["bytes"]


def test_runs_are_of_one_group_and_lose_less_than_one():
    groups = np.random.default_rng(0).choice([7, -3, 2**40, 5], 1001, p=[0.5, 0.3, 0.195, 0.005])
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(0))
    runs = _in_runs(order, groups, 8).reshape(-1, 8)
    assert len(runs) == 125 and len(set(runs.flatten().tolist())) == 1000
    kinds = Counter(len(set(groups[run])) for run in runs.numpy())
    assert kinds[1] >= 122 and kinds.total() == 125
    first = [groups[run[0]] for run in runs.numpy()]
    assert 3 < sum(one != other for one, other in zip(first, first[1:], strict=False)) < 110  # the groups alternate


def test_batches_by_speaker(shards):
    """Of one speaker in each process; the batches of two processes are those of one of twice the size, also after a change
    in the middle."""
    count = len(loader(shards).data)
    alone = take(loader(shards), count // 4)
    mixed = sum(len(batch["speaker_ids"].unique()) > 1 for batch in alone)
    assert mixed <= 5 and len(alone[0]["speaker_ids"]) == 4
    seeds = torch.cat([batch["sample_seeds"] for batch in alone])
    assert len(seeds.unique()) == count // 4 * 4
    first = loader(shards, batch_size=8)
    taken = [batch["sample_seeds"] for batch in take(first, 2)]
    parts = []
    for process in range(2):
        part = loader(shards, process=process, processes=2)
        part.load_state_dict(first.state_dict())
        parts.append([batch["sample_seeds"] for batch in take(part, 3)])
    taken += [torch.cat(pair) for pair in zip(*parts, strict=True)]
    assert torch.equal(torch.cat(taken), seeds[:40])
    streams = take(loader(shards, True), count // 4)
    assert sum(len(batch["speaker_ids"].unique()) > 1 for batch in streams) < 0.5 * len(streams)
    plain = take(loader(shards, True, run=0), count // 4)
    assert sum(len(batch["speaker_ids"].unique()) > 1 for batch in plain) > 0.8 * len(plain)


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_broken_windows_leave_their_speakers_together(streaming):
    """Whole runs also after a broken file, whose place a file of its speaker takes in rows, the next run in a stream."""
    files = [encoded(noise(4 * WINDOW, seed)) for seed in range(20)]
    files[3] = files[11] = b"not audio"
    data = in_columns(audio=files, speaker=[seed // 10 for seed in range(20)])
    windows = audio_windows(streamed(data) if streaming else data, "audio", WINDOW, "speaker")
    batches = TrainLoader(windows, WaveformBatches(WINDOW, 4), 4, 0, buffer_size=40)
    speakers = [len(batch["speaker_ids"].unique()) for batch in take(batches, 60)]
    assert batches.broken > 3 and batches.reasons["broken"].endswith("Format not recognised.".rstrip("."))
    assert sum(count > 1 for count in speakers) < (20 if streaming else 7)


def test_windows_are_what_wav2vec2s_extractor_makes_of_them():
    waves = [noise(WINDOW, seed, gain) + 0.01 for seed, gain in enumerate((0.003, 0.1, 0.5))]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(
        [wave.astype(np.float32) for wave in waves], sampling_rate=16000, return_tensors="pt"
    ).input_values
    decoder = WaveformBatches(WINDOW)
    row = {"length": WINDOW, "number": 0, "sample_seed": 1}
    items = [decoder.decode(row | {"audio": {"array": wave, "sampling_rate": 16000}}) for wave in waves]
    seeds = torch.arange(3)
    batch = decoder.view(**decoder.collate(items, seeds))
    assert batch.keys() == {"input_values", "sample_seeds"} and torch.equal(batch["sample_seeds"], seeds)
    torch.testing.assert_close(batch["input_values"], expected, rtol=0, atol=1e-5)
    louder = [decoder.decode(row | {"audio": {"array": 7 * wave, "sampling_rate": 16000}}) for wave in waves]
    louder = decoder.view(**decoder.collate(louder, seeds))["input_values"]
    torch.testing.assert_close(louder, batch["input_values"], rtol=0.01, atol=1e-3)  # the variance's epsilon


def bad_files():
    """Name -> (file, what is said of it)."""
    good = noise(6 * WINDOW)
    flac, broken = encoded(good), good.copy()
    broken[WINDOW * 3] = np.nan
    return {
        "silent": (encoded(np.zeros(6 * WINDOW)), "the audio is silent"),
        "nearly": (encoded(noise(6 * WINDOW, gain=3e-5)), "the audio is silent"),
        "nan": (encoded(broken, kind="wav", subtype="FLOAT"), "holds values that are not finite"),
        "empty": (b"", "the audio is empty"),
        "text": (b"This is no audio file. " * 100, "cannot be read: Format not recognised"),
        "cut": (flac[: len(flac) // 3], "cannot be read"),
        "header": (flac[:60], "cannot be read"),
        "missing": (None, "the audio is empty"),
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_skipped_and_counted(name, streaming):
    bad, reason = bad_files()[name]
    files = [encoded(noise(2 * WINDOW, seed)) for seed in range(6)]
    files.insert(2, bad)
    data = in_columns(audio=files)
    windows = audio_windows(streamed(data) if streaming else data, "audio", WINDOW)
    batches = TrainLoader(windows, WaveformBatches(WINDOW), 8, 0, buffer_size=8)
    taken = take(batches, 12)
    kind, other = ("unfit", "broken") if "silent" in reason else ("broken", "unfit")  # silence is whole
    assert getattr(batches, kind) >= 3 and getattr(batches, other) == 0 and reason in batches.reasons[kind]
    assert all(
        batch["input_values"].isfinite().all() and (batch["input_values"].std(1) > 0.05).all() for batch in taken
    )
    if name in ("cut", "nan"):  # what can be read in full is used
        assert batches.broken < 12 * 6
    alone = in_columns(audio=[bad] * 3)
    windows = audio_windows(streamed(alone) if streaming else alone, "audio", WINDOW)
    if name not in ("cut", "nan"):
        verb = "used" if kind == "unfit" else "decoded"
        with pytest.raises(DataError, match=f"could not be {verb}, the last because: .*{reason}"):
            take(TrainLoader(windows, WaveformBatches(WINDOW), 2, 0, buffer_size=8), 1)


@pytest.mark.parametrize("kind, subtype", [("wav", "GSM610"), ("wav", "G721_32"), ("au", "G723_24")])
def test_codecs_that_are_read_from_the_start_alone(kind, subtype):
    file = encoded(noise(3 * 8000), rate=8000, kind=kind, subtype=subtype)
    whole, part = decode_audio(file), decode_audio(file, start=1.0, seconds=0.5)
    assert len(whole) == audio_length(file) >= 3 * 16000 and whole.std() > 0.01
    assert torch.equal(part, whole[16000:24000])


@pytest.mark.parametrize("rate", [1, 100_000_000])
def test_rates_that_no_recorder_has_are_refused(rate):
    """They would be hours of audio, or gigabytes of a filter."""
    file = bytearray(encoded(noise(3 * 8000), kind="wav", subtype="PCM_16"))
    file[24:28] = rate.to_bytes(4, "little")
    array = {"array": np.zeros(8000, np.float32), "sampling_rate": rate}
    for value in ({"bytes": bytes(file), "path": "clips/7.wav"}, array):
        for read in (decode_audio, audio_length):
            with pytest.raises(ValueError, match=f"the audio.* claims a rate of {rate} Hz: expected 1000 to 1000000"):
                read(value)
    with pytest.raises(ValueError, match="the audio 'clips/7.wav' cannot be read: there is no such file"):
        decode_audio({"bytes": None, "path": "clips/7.wav"})
    for wrong in ({}, {"sampling_rate": 16000.5}):
        with pytest.raises(ValueError, match="the audio has the sampling_rate .*: expected a whole number of Hz"):
            decode_audio({"array": np.zeros(8000), **wrong})
    assert len(decode_audio({"array": np.zeros(8000), "sampling_rate": 8000.0})) == 16000
    with pytest.raises(ValueError, match="the audio 'clips/7.wav' cannot be read: Format not recognised"):
        decode_audio({"bytes": b"This is no audio file. " * 9, "path": "clips/7.wav"})


def test_files_that_are_too_short(caplog):
    lengths = (WINDOW - 1, WINDOW, 100, 3 * WINDOW)
    data = in_columns(audio=[encoded(noise(length)) for length in lengths], speaker=["a", "b", "a", "c"])
    windows = audio_windows(data, "audio", WINDOW, "speaker")
    assert len(windows) == 4 and windows["speaker"].tolist() == [speaker_id(name) for name in "bccc"]
    assert (
        "2 of 4 audio files are shorter than window_samples 4000 (0.25 s at 16 kHz) and are left out." in caplog.text
    )
    batches = TrainLoader(audio_windows(streamed(data), "audio", WINDOW), WaveformBatches(WINDOW), 4, 0, buffer_size=4)
    take(batches, 4)
    assert batches.broken == 0 and 6 <= batches.unfit <= 10
    assert batches.reasons["unfit"].endswith("samples at 16 kHz is shorter than window_samples 4000")
    again = TrainLoader(audio_windows(streamed(data), "audio", WINDOW), WaveformBatches(WINDOW), 4, 0, buffer_size=4)
    again.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert again.unfit == batches.unfit
    with pytest.raises(
        DataError, match=r"All 4 audio files are shorter than window_samples 20480 .*longest has 12000"
    ):
        audio_windows(data, "audio")
    with pytest.raises(DataError, match="shorter than window_samples 20480"):
        take(TrainLoader(audio_windows(streamed(data), "audio"), WaveformBatches(), 4, 0), 1)


def folder_of(tmp_path, kind):
    """Two speakers, four files, in the layout `kind`; what `--dataset_name` is then."""
    folder = tmp_path / kind.replace("*", "files")
    (folder / "data").mkdir(parents=True)
    files = [encoded(tones(16000, 1.0, start=i)) for i in range(4)]
    speakers = ["ann", "bob", "ann", "bob"]
    paths = [folder / f"data/{i}.flac" for i in range(4)]
    for path, file in zip(paths, files, strict=True):
        if kind in ("audiofolder", "metadata", "*.flac", "paths"):
            path.write_bytes(file)
    if kind == "metadata":
        lines = [f"data/{i}.flac,{speaker}" for i, speaker in enumerate(speakers)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,speaker_id", *lines]))
    if kind in ("bytes", "hub"):
        rows = in_columns(audio=[{"bytes": file, "path": None} for file in files], client_id=speakers)
        features = {"audio": datasets.Audio(16000), "client_id": datasets.Value("string")}
        rows = rows if kind == "bytes" else rows.cast(datasets.Features(features))
        rows.to_parquet(folder / ("train.parquet" if kind == "bytes" else "data/clean-00000-of-00001.parquet"))
    if kind == "hub":  # as LibriSpeech has it: named configurations and splits
        configs = {
            "configs": [{"config_name": "clean", "data_files": [{"split": "train.100", "path": "data/clean-*"}]}]
        }
        (folder / "README.md").write_text(f"---\n{json.dumps(configs)}\n---\n")
    if kind == "paths":
        in_columns(path=[str(path) for path in paths], speaker=[0, 1, 0, 1]).to_parquet(folder / "train.parquet")
        return str(folder / "train.parquet"), True
    if kind == "tar":
        with tarfile.open(folder / "data/a.tar", "w") as tar:
            for i, file in enumerate(files):
                info = tarfile.TarInfo(f"{i}.flac")
                info.size = len(file)
                tar.addfile(info, io.BytesIO(file))
    return str(folder / "data/*.flac") if kind == "*.flac" else str(folder), kind in ("metadata", "bytes", "hub")


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("kind", ["audiofolder", "metadata", "*.flac", "bytes", "paths", "tar", "hub"])
def test_every_layout_of_audio(tmp_path, kind, streaming):
    name, has_speakers = folder_of(tmp_path, kind)
    where = dict(dataset_config_name="clean", train_split="train.100") if kind == "hub" else {}
    args = AudioArguments(dataset_name=name, window_samples=WINDOW, streaming=streaming, **where)
    windows, decoder = audio_data(CPCAudioConfig(), args)
    assert streaming or len(windows) == 16
    [batch] = take(TrainLoader(windows, decoder, 16, 0, num_workers=1, buffer_size=16), 1)
    assert batch["input_values"].shape == (16, WINDOW) and ("speaker_ids" in batch) == has_speakers
    assert not has_speakers or batch["speaker_ids"].unique(return_counts=True)[1].tolist() == [8, 8]


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_audio_files_on_the_hub(hub, streaming, tmp_path):
    """A repository of files and a table of their speakers; a stream fetches each file once for all of its windows."""
    folder, _ = folder_of(tmp_path, "metadata")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.*")}
    hub.add("org/talks", files, kind="datasets")
    args = AudioArguments(dataset_name="org/talks", window_samples=WINDOW, streaming=streaming)
    windows, decoder = audio_data(CPCAudioConfig(), args)
    [batch] = take(TrainLoader(windows, decoder, 16, 0, buffer_size=16), 1)
    assert batch["speaker_ids"].unique(return_counts=True)[1].tolist() == [8, 8]
    assert len(hub.calls("GET", "flac$")) == (8 if streaming else 4)  # the stream's next block is another epoch


def test_headers_are_read_once(shards, monkeypatch):
    rows, column = audio_rows(load_split(str(shards)))
    first = audio_windows(rows, column, WINDOW)
    monkeypatch.delattr("hf_ssl.data.windows.audio_length")  # as in the next run
    assert len(audio_windows(rows, column, WINDOW)) == len(first)


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_the_embedded_speech(streaming):
    args = AudioArguments(streaming=streaming, per_device_train_batch_size=8, windows_per_speaker=8)
    windows, decoder = audio_data(CPCAudioConfig(negative_policy="same_speaker"), args)
    batch = take(TrainLoader(windows, decoder, 8, 0), 1)[0]
    assert batch["input_values"].shape == (8, 20480) and batch["speaker_ids"].shape == (8,)


def test_what_is_asked_in_vain(tmp_path):
    name, _ = folder_of(tmp_path, "audiofolder")
    asked = dict(dataset_name=name, window_samples=WINDOW, per_device_train_batch_size=8)
    with pytest.raises(
        DataError, match=r"windows_per_speaker needs to know who speaks, but no speaker column .* \['audio'\]"
    ):
        audio_data(CPCAudioConfig(), AudioArguments(windows_per_speaker=8, **asked))
    with pytest.raises(DataError, match="negative_policy 'same_speaker' needs to know who speaks"):
        audio_data(CPCAudioConfig(negative_policy="same_speaker"), AudioArguments(**asked))
    with pytest.raises(DataError, match=r"speaker_column 'who' is not in the data set: found the columns \['audio'\]"):
        audio_data(CPCAudioConfig(), AudioArguments(speaker_column="who", **asked))
    with pytest.raises(DataError, match="audio_column 'label' holds int64 values"):
        audio_rows(load_split(), "label")
    with pytest.raises(DataError, match="No audio column was found"):
        audio_rows(load_split(sample="text"))
    with pytest.raises(DataError, match="speaker_column 'audio' holds dict values"):
        audio_data(CPCAudioConfig(), AudioArguments(speaker_column="audio", **asked))
    with pytest.raises(InputError, match="batch_size 8 must be a multiple of windows_per_speaker 3"):
        AudioArguments(windows_per_speaker=3, **asked)
    few, _ = folder_of(tmp_path, "bytes")
    with pytest.raises(DataError, match="The data have 16 rows, fewer than the 20 of one 'speaker' in a run"):
        args = AudioArguments(
            dataset_name=few, window_samples=WINDOW, per_device_train_batch_size=20, windows_per_speaker=20
        )
        TrainLoader(*audio_data(CPCAudioConfig(), args), 20, 0)


def test_speakers_have_lasting_numbers():
    assert [speaker_id(value) for value in (7, None, "7", "ann")] == [7, -1, 8333924190356522945, 5088345978781694418]


def trained(folder, streaming, resume=None):
    """(weights, history) of a run of CPC with batches of one speaker, in a process of its own."""
    args = AudioArguments(
        output_dir=str(folder), streaming=streaming, max_steps=6, per_device_train_batch_size=4, logging_steps=3,
        save_steps=2, lr_scheduler_type="constant", windows_per_speaker=2, shuffle_buffer_size=8, window_samples=WINDOW,
        resume_from_checkpoint=resume, eval_protocols="none", cpu_threads=1,
    )  # fmt: skip
    encoder = dict(model_type="ssl_cpc_audio_model", conv_size=8, hidden_size=8)
    config = CPCAudioConfig(backbone_config=encoder, negative_policy="same_speaker")
    rows, decoder = audio_data(config, args)
    run = train(build_model(CPCAudioForPreTraining, config, args), rows, decoder, args)
    return {name: value.numpy() for name, value in run.model.state_dict().items()}, run.history


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_on_speech_is_taken_up_bitwise(streaming, tmp_path):
    """The log too: its metrics are means over steps on both sides of the checkpoint."""
    [(expected, history)] = launch(trained, tmp_path / "whole", streaming)
    shutil.rmtree(tmp_path / "whole/checkpoints/step_6")
    [(weights, again)] = launch(trained, tmp_path / "whole", streaming, "auto")
    assert all(np.array_equal(weights[name], value) for name, value in expected.items())
    assert again == history and {"loss", "nats_1", "nats_12", "hits"} <= history[-1].keys()


def test_a_run_on_speech_ends_with_phones_and_speakers(tmp_path):
    """From the embedded recordings to a release that plain transformers loads, by the code that it brings."""
    small = "backbone_config.conv_size=16,backbone_config.hidden_size=16"
    flags = ["--max_steps", 2, "--config_overrides", small, "--logging_steps", 1, "--output_dir", tmp_path / "run"]
    code, out, err = run("pretrain_cpc_audio.py", *flags, "--eval_protocols", "linear_probe")
    assert code == 0 and "MFCC" in out and "linear probe (speaker)" in out, err
    card = (tmp_path / "run/README.md").read_text()
    assert "| negatives | 128 frames a window, current |" in card and "--max_steps 2" in card
    run_card(tmp_path / "run", "frames.shape == (1, 200, 16)")
