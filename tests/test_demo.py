"""The page of `hf-ssl demo`: what its panels answer, over HTTP too, the Space that shows it, and real clicks in a browser."""

import base64
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image
from test_command import hf_ssl
from test_evaluation_pairs import clip, pairs_folder  # noqa: F401, fixtures
from test_hub import make_release, token  # noqa: F401, the second a fixture
from test_scripts import pictures, release  # noqa: F401, fixtures

from hf_ssl.data.words import word_tokenizer
from hf_ssl.errors import InputError
from hf_ssl.evaluation import PAIRS, modality_of
from hf_ssl.hub import HubError, push_space, space_files
from hf_ssl.methods import METHODS, Word2VecModel, WordVectorsConfig

gradio = pytest.importorskip("gradio", reason="pip install 'hf_ssl[demo]'")

from gradio_client import Client, handle_file  # noqa: E402

from hf_ssl.demo import build_page, feature_map, load_release, neighbours, reconstruct, serve, words, zero_shot  # noqa: E402

CHROMIUM = next(filter(None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))), None)
WORDS = ["paris", "france", "rome", "italy", "berlin", "germany", "cat", "dog"]


@pytest.fixture(scope="module")
def mae(release, pictures):  # noqa: F811
    return load_release(release[0], str(pictures), max_samples=60)


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory):
    """Three capitals and countries in a regular place to each other, and two other words."""
    folder = tmp_path_factory.mktemp("words")
    generator = torch.Generator().manual_seed(0)
    capital, table = torch.randn(16, generator=generator), torch.randn(len(WORDS), 16, generator=generator)
    for country in (1, 3, 5):
        table[country - 1] = table[country] + 2 * capital
    tokenizer = word_tokenizer(WORDS)
    model = Word2VecModel(WordVectorsConfig(vocab_size=len(tokenizer), hidden_size=16))
    numbers = tokenizer.convert_tokens_to_ids(WORDS)
    with torch.no_grad():
        model.get_input_embeddings().weight[numbers] = table
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_words(words_folder):
    return load_release(words_folder, max_samples=20)


@pytest.fixture(scope="module")
def pairs(clip, pairs_folder):  # noqa: F811
    return load_release(clip, str(pairs_folder))


def saved(path, pixels):
    """A PNG of uint8 (C, H, W)."""
    image = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    Image.fromarray(image.numpy()).save(path)
    return path


@pytest.fixture
def image(mae, tmp_path):
    """The file of an image that is in the gallery, as row 7."""
    return saved(tmp_path / "image.png", mae.gallery.item(7))


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    return path


# -- panels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page(name, tmp_path):
    """Without a line for it: what its model can do decides, and what it reads."""
    folder, model = make_release(tmp_path / name, name)
    found = load_release(folder, max_samples=8)
    assert len(found.gallery) == 8 and len(found.gallery.captions) == 8 and found.method is METHODS[name]
    page = build_page(found)
    titles = {block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)}
    assert {"Nearest neighbours", "Map"} <= titles
    assert ("Fill in" in titles) == hasattr(model, "reconstruct")
    assert ("Zero-shot" in titles) == (modality_of(model) == PAIRS)
    drawn = feature_map.points(found.gallery)
    assert len(drawn["places"]) == 8 and {"thumbnails", "texts"} & drawn.keys() or found.modality == "audio"
    assert feature_map.chosen(found.gallery, 3).value is not None


def test_an_image_is_its_own_nearest_neighbour(mae, image):
    shown = neighbours.find(mae, str(image))
    assert len(shown) == neighbours.NEIGHBOURS["image"]
    assert shown[0]["caption"] == f"{mae.gallery.captions[7]}, 1.00"
    data = base64.b64decode(shown[0]["image"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).size == (224, 224), "small images are enlarged"


def test_texts_and_recordings_have_neighbours(tmp_path):
    texts = load_release(make_release(tmp_path / "bert", "bert")[0], max_samples=30)
    rows = neighbours.find(texts, texts.gallery.item(4))
    assert float(rows[0][0]) == 1 and len(rows) == neighbours.NEIGHBOURS["text"] and all(label for *_, label in rows)
    speech = load_release(make_release(tmp_path / "cpc", "cpc_audio")[0], max_samples=10)
    file = tmp_path / "speech.flac"
    file.write_bytes(speech.gallery.data[3]["audio"]["bytes"])
    players = neighbours.find(speech, str(file))
    assert [player.visible for player in players] == [True] * neighbours.NEIGHBOURS["audio"]
    assert players[0].label.endswith("1.00")
    with pytest.raises(InputError, match="This recording cannot be read, the last because: .*'broken.wav'"):
        (tmp_path / "broken.wav").write_bytes(b"RIFF")
        neighbours.find(speech, str(tmp_path / "broken.wav"))


def test_what_is_masked_is_filled_in_and_the_rest_stays(mae):
    pixels = reconstruct.pixels_of(mae, mae.gallery.data[0]["image"])
    grid = mae.pretraining.grid
    mask = [0] * (grid**2 - 1) + [1]
    before, after = (
        np.array(reconstruct.fill_in(mae, pixels, masked).convert("L")) for masked in ([0] * grid**2, mask)
    )
    changed, side = before != after, len(before)
    last = side - side // grid
    assert changed[last:, last:].any() and not changed[:last].any() and not changed[:, :last].any()
    assert sum(reconstruct.random_mask(grid)) == 0.75 * grid**2


def test_typed_classes_get_the_probabilities_of_transformers(pairs, image):
    from transformers import pipeline

    names, prompt = ["red", "green", "blue"], "a {}"
    found = zero_shot.classify(pairs, str(image), "red, green\nblue,, red", prompt)
    assert list(found) == names and sum(found.values()) == pytest.approx(1)
    theirs = pipeline("zero-shot-image-classification", model=pairs.name)(
        str(image), candidate_labels=names, hypothesis_template=prompt
    )
    assert {row["label"]: pytest.approx(row["score"], abs=1e-3) for row in theirs} == found


def test_words_and_analogies(own_words):
    vectors = words.WordVectors.of_model(own_words.encoder.model, own_words.encoder.processor)
    assert words.fits(own_words) and words.similar(vectors, " Paris ")[0][0] in WORDS
    assert words.analogy(vectors, "france", "paris", "italy")[0][0] == "rome"
    with pytest.raises(InputError, match="The word 'london' is not among the 8 of the vocabulary"):
        words.similar(vectors, "London")
    with pytest.raises(InputError, match="Type a word first"):
        words.analogy(vectors, "france", "", "italy")


@pytest.mark.parametrize(
    "names, prompt, message",
    [(" ,\n", "{}", "two class names or more"), ("cat, cat", "{}", "two class names"), ("cat, dog", "a", "needs {}")],
)
def test_classes_that_cannot_be_compared_are_refused(pairs, image, names, prompt, message):
    with pytest.raises(InputError, match=message):
        zero_shot.classify(pairs, str(image), names, prompt)


def test_files_that_are_no_images_are_refused(mae, broken, tmp_path):
    with pytest.raises(InputError, match="This image cannot be read, the last because: .*broken.png"):
        neighbours.find(mae, str(broken))
    with pytest.raises(InputError, match="Choose an image file first"):
        neighbours.find(mae, None)


def test_a_gallery_needs_no_labels(release, pictures, tmp_path):  # noqa: F811
    """A folder of images alone, one of them broken; and labels that are named must be there."""
    from hf_ssl.data import load_split

    rows = load_split(str(pictures), "test")
    for number in range(6):
        rows[number]["image"].save(tmp_path / f"{number}.png")
    (tmp_path / "6.png").write_bytes(b"broken")
    found = load_release(release[0], str(tmp_path))
    assert len(found.gallery) == 6 and found.gallery.labels == [""] * 6 and "split 'train'" in found.gallery.title
    assert feature_map.points(found.gallery)["names"] == []
    for settings, message in (
        ({"label_column": "kind"}, "label_column 'kind' is not in the data set"),
        ({"split": "dev"}, "has no readable split 'dev'"),
        ({"max_samples": 2}, "max_samples must be at least 3, found 2"),
    ):
        with pytest.raises(InputError, match=message):
            load_release(release[0], str(tmp_path), **settings)


# -- the server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(name, **settings):
    """The address of a page."""
    page, url = serve(name, wait=False, **settings)
    try:
        yield url
    finally:
        page.close(verbose=False)


def test_the_server_answers_and_says_what_is_wrong_in_a_sentence(release, pictures, words_folder, image, broken):  # noqa: F811
    with served(release[0], dataset_name=str(pictures), max_samples=60) as url:
        client = Client(url, verbose=False, analytics_enabled=False)
        found = client.predict(handle_file(image), api_name="/neighbours")
        assert len(found) == neighbours.NEIGHBOURS["image"] and found[0]["caption"].endswith("1.00")
        for file, message in ((handle_file(broken), "cannot be read"), (None, "Choose an image file first")):
            with pytest.raises(Exception, match=message) as error:
                client.predict(file, api_name="/neighbours")
            assert "Traceback" not in str(error.value)
    with served(words_folder, max_samples=5) as url:
        client = Client(url, verbose=False, analytics_enabled=False)
        found = client.predict("france", "paris", "italy", api_name="/analogy")
        assert found[0][0] == "rome"
        with pytest.raises(Exception, match="'xyz' is not among the 8 of the vocabulary"):
            client.predict("xyz", api_name="/similar_words")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_command_says_what_it_reads_and_where_the_page_is(release, pictures):  # noqa: F811
    command = [sys.executable, "-m", "hf_ssl", "demo", release[0], "--dataset_name", pictures, "--max_samples", 20]
    command += ["--port", free_port()]
    interrupted = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (ignored where tests run in the background)
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=interrupted)
    try:
        lines = []
        while not lines or "The page is at" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert any("Reading 20 images of the split 'test'" in line for line in lines)
        [address] = re.findall(r"http://127[^ ]+", lines[-1])
        assert "mae" in urlopen(address).read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[1]
    assert "Traceback" not in rest, rest


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{tmp}"], "'{tmp}' is not a folder or Hub id of a loadable model"),
        (["{tmp}/none"], "'{tmp}/none' is not a folder that exists, and no Hub id"),
        (
            ["{release}", "--text_column", "title"],
            "The argument --text_column is not for '{release}', which reads image",
        ),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(release, tmp_path, arguments, message):  # noqa: F811
    places = {"tmp": tmp_path, "release": release[0]}
    code, _, err = hf_ssl("demo", *(argument.format(**places) for argument in arguments))
    assert code == 1 and err.startswith("error: ") and message.format(**places) in err and err.count("\n") == 1


# -- the Space --------------------------------------------------------------------------------------------------------


def test_a_space_is_pushed_beside_the_model_and_runs_as_it_is(release, token, hub, tmp_path):  # noqa: F811
    code, _, err = hf_ssl("push", release[0], "org/pictures", "--space")
    assert code == 0 and "/spaces/org/pictures is at " in err, err
    assert "model.safetensors" in hub.files("org/pictures")
    files = hub.files("org/pictures", kind="spaces")
    assert {"app.py", "requirements.txt", "README.md"} <= files.keys()
    assert files["requirements.txt"].startswith(b"hf_ssl[demo]==")
    card = SpaceCard(files["README.md"].decode())
    assert (card.data.sdk, card.data.sdk_version) == ("gradio", gradio.__version__)
    assert card.data.models == ["org/pictures"] and card.data.app_file == "app.py"
    before = len(hub.repositories["spaces", "org/pictures"].commits)
    push_space(space_files(release[0], "org/pictures"), "org/pictures")
    assert len(hub.repositories["spaces", "org/pictures"].commits) == before == 2, (
        "what is unchanged is not sent again"
    )

    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path, env=os.environ | {"GRADIO_SERVER_PORT": str(port)}
    )
    try:
        deadline, page = time.monotonic() + 120, None
        while page is None:
            try:
                page = urlopen(f"http://127.0.0.1:{port}/").read().decode()
            except URLError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        assert "org/pictures" in page
    finally:
        process.terminate()
        process.wait(30)


def test_a_space_of_somebody_else_stays_as_it_is(release, token, hub):  # noqa: F811
    hub.add("org/mine", {"app.py": b"print('mine')\n"}, kind="spaces")
    with pytest.raises(HubError, match="The Space 'org/mine' has an app.py of its own"):
        push_space(space_files(release[0], "org/mine"), "org/mine")
    assert hub.files("org/mine", kind="spaces")["app.py"] == b"print('mine')\n"


def test_a_space_of_recordings_asks_for_what_decodes_them(tmp_path):
    folder, _ = make_release(tmp_path / "speech", "cpc_audio")
    assert space_files(folder, "org/speech")["requirements.txt"].startswith(b"hf_ssl[audio,demo]==")


# -- the browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    """A real browser without a screen."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium was found on the path")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390])
def visit(chromium, request):
    """Opens an address at a width, and sees to it that the page asks nobody else, fits the width and has no error."""
    asked, errors = [], []
    page = chromium.new_page(viewport={"width": request.param, "height": 900})
    page.on("request", lambda found: asked.append(found.url))
    page.on("pageerror", lambda error: errors.append(str(error)))

    def open_page(url):
        page.goto(url)
        page.get_by_role("tab").first.wait_for()
        return page

    yield open_page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    address = page.url.rstrip("/")
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == [] and not errors
    page.close()


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


@pytest.mark.browser
def test_clicks_on_a_masked_autoencoder(visit, release, pictures, image, broken):  # noqa: F811
    """Masked patches are filled in, an image gets neighbours, a file that is none a sentence, the map shows images."""
    with served(release[0], dataset_name=str(pictures), max_samples=60) as url:
        page = visit(url)
        panel = open_tab(page, "Fill in")
        page.locator("#patches .clear").click()
        cells, filled = page.locator("#patches .cells i"), page.locator("#filled img")
        page.wait_for_function("document.querySelectorAll('#patches .masked').length === 0")
        before = filled.get_attribute("src")
        first, last = cells.nth(5).bounding_box(), cells.nth(6).bounding_box()
        page.mouse.move(first["x"] + 5, first["y"] + 5)
        page.mouse.down()
        page.mouse.move(last["x"] + 15, last["y"] + 5, steps=6)
        page.mouse.up()
        page.wait_for_function("src => document.querySelector('#filled img').src !== src", arg=before)
        assert [i for i in range(16) if "masked" in (cells.nth(i).get_attribute("class") or "")] == [5, 6]

        panel = open_tab(page, "Nearest neighbours")
        panel.locator("input[type=file]").first.set_input_files(image)
        panel.get_by_text("1.00").first.wait_for()
        assert page.locator("#neighbours img").count() == neighbours.NEIGHBOURS["image"]
        panel.get_by_role("button", name="Clear").or_(panel.get_by_label("Remove")).first.click()
        panel.locator("input[type=file]").first.set_input_files(broken)
        page.get_by_text("This image cannot be read").first.wait_for()

        panel = open_tab(page, "Map")
        panel.locator("circle").first.wait_for(state="attached")
        assert panel.locator("circle").count() == 60
        point = panel.locator("circle").nth(7)
        point.scroll_into_view_if_needed()
        point.hover(force=True)
        panel.locator(".tip .thumbnail").wait_for()
        point.click(force=True)
        panel.locator("img").first.wait_for()


@pytest.mark.browser
def test_clicks_on_an_encoder_of_images_and_texts(visit, pairs, image, pairs_folder):  # noqa: F811
    """Typed classes get bars; without them there is a sentence."""
    with served(pairs.name, dataset_name=str(pairs_folder)) as url:
        page = visit(url)
        panel = open_tab(page, "Zero-shot")
        panel.locator("input[type=file]").first.set_input_files(image)
        panel.locator("img").first.wait_for()
        panel.get_by_role("button", name="Classify").click()
        page.get_by_text("Type two class names or more").first.wait_for()
        panel.get_by_label("Classes").fill("red, green")
        panel.get_by_role("button", name="Classify").click()
        panel.get_by_text("%").first.wait_for()
        found = zero_shot.classify(pairs, str(image), "red, green", "a photo of a {}.")
        for name, share in found.items():
            assert panel.get_by_text(f"{share:.0%}").count() and panel.get_by_text(name, exact=True).count()


@pytest.mark.browser
def test_clicks_on_word_vectors(visit, words_folder):
    with served(words_folder, max_samples=5) as url:
        page = visit(url)
        panel = open_tab(page, "Words")
        panel.get_by_label("Word", exact=True).fill("xyz")
        panel.get_by_role("button", name="Similar words").click()
        page.get_by_text("The word 'xyz' is not among the 8").first.wait_for()
        for label, word in (("If", "france"), ("is to", "paris"), ("as … is to ?", "italy")):
            panel.get_by_label(label, exact=True).fill(word)
        panel.get_by_role("button", name="Solve").click()
        panel.get_by_text("rome", exact=True).first.wait_for()
