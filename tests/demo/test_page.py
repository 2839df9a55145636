import numpy as np
import pytest
from PIL import Image

from demo.trained_run import open_run
from demo_run import write_run

gradio = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from demo.page import build_page  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    page = build_page(open_run(write_run(tmp_path_factory.mktemp("run")))).queue()
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    yield Client(address, verbose=False, analytics_enabled=False)
    page.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    return handle_file(str(file))


def size(file):
    with Image.open(file) as picture:
        return picture.size


def test_classes_are_drawn_as_columns_with_their_seconds(client):
    sheet, said = client.predict([0, 3, 4], 2, 1.5, 0, api_name="/generate_mar")
    again, _ = client.predict(["0", "3", "4"], 2, 1.5, 0, api_name="/generate_mar")  # as its view of the API has them
    assert np.array_equal(Image.open(again), Image.open(sheet))
    width, height = size(sheet)
    assert width > 700 and height / width == pytest.approx(2 / 3, abs=0.02)
    assert said.startswith("6 images in ") and said.endswith(" s each")


def test_every_option_of_the_sampler_is_on_the_page_with_the_runs_value(client):
    parameters = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/generate_mar"][
        "parameters"
    ]
    values = {one["parameter_name"]: one.get("parameter_default") for one in parameters}
    assert values["ar_steps"] == 2 and values["head_steps"] == 3 and values["solver"] == "euler"
    assert values["cfg_interval"] == "[0.0, 1.0]" and values["one_batch"] is True
    first, _ = client.predict([0], 1, 1, 0, api_name="/generate_mar")
    other, _ = client.predict([0], 1, 1, 0, head_steps=1, api_name="/generate_mar")
    assert np.any(np.asarray(Image.open(first)) != np.asarray(Image.open(other)))
    cooler, _ = client.predict([0], 1, 1, 0, temperature=0.5, api_name="/generate_mar")  # a fraction
    assert np.any(np.asarray(Image.open(first)) != np.asarray(Image.open(cooler)))
    _, said = client.predict([0], 1, 1, 0, ar_steps=999, api_name="/generate_mar")
    assert said.startswith("1 image in ") and said.endswith(
        " s. ar_steps=999 is more than the 4 tokens: 4 steps are made."
    )


def test_an_uploaded_image_is_rebuilt_and_two_are_walked_between(client, image):
    sheet, said = client.predict(image, 0.3, 0, api_name="/rebuild")
    assert size(sheet)[0] > 700 and said.startswith("PSNR ")
    line = client.predict(image, image, 5, api_name="/walk")
    width, height = size(line)
    assert height / width == pytest.approx(2 / 5, abs=0.02)


def test_samples_of_the_prior_are_a_picture(client):
    picture, said = client.predict(100, 2, 0, api_name="/prior")
    assert size(picture)[0] > 700 and said.startswith("100 samples in ")


def test_a_file_that_is_no_image_is_one_line_in_the_browser(client, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    file = handle_file(str(tmp_path / "text.png"))
    for name, values in (("/rebuild", (file, 0, 0)), ("/walk", (file, file, 3))):
        with pytest.raises(AppError, match="the image text.png cannot be read") as caught:
            client.predict(*values, api_name=name)
        assert "\n" not in str(caught.value) and "preprocess" not in str(caught.value)


@pytest.mark.parametrize(
    "name, values, message",
    [
        (
            "/generate_mar",
            {"cfg": 1, "per_class": 1, "ar_steps": 0},
            "^(?!.*head_steps).*ar_steps is at least 1, not 0",
        ),
        ("/generate_mar", {"head_steps": 0}, "head_steps is at least 1, not 0"),
        ("/generate_mar", {"temperature": -1}, "temperature is above 0, not -1"),
        ("/generate_mar", {"ar_steps": 1.5}, "ar_steps is a whole number, not 1.5"),
        ("/generate_mar", {"ar_steps": None}, "ar_steps is empty: write a whole number"),
        ("/generate_mar", {"cfg": None}, "guidance is empty: write a number"),
        ("/generate_mar", {"per_class": None}, "images of each is empty: write a whole number"),
        ("/rebuild", {"file": None, "noise": None}, "noise on the latents is empty: write a number"),
        ("/generate_mar", {"head": "map", "head_evaluations": 1}, "there is no flow map"),
        ("/generate_mar", {"seed": None}, "seed is empty"),
        ("/generate_mar", {"seed": -1}, "seed is 0 or more, not -1"),
        ("/generate_mar", {"classes": [0, "99"]}, "there is no class 99: they are 0 to"),
        ("/generate_mar", {"classes": ["cat"]}, "classes are given by number, not as 'cat'"),
        ("/rebuild", {"file": None}, "choose an image first"),
        ("/prior", {"steps": 2, "count": 100, "seed": None}, "seed is empty"),
    ],
)
def test_a_mistake_is_one_message_in_the_browser(client, name, values, message):
    defaults = {"classes": [0]} if name == "/generate_mar" else {}
    with pytest.raises(AppError, match=message):
        client.predict(**(defaults | values), api_name=name)
