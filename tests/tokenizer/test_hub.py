"""A trained autoencoder on the Hugging Face hub, and a flow prior, as far as it goes without a network."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import torch

from flowprior.errors import UserError
from networks import random_prior
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.vit import ViTConfig


@pytest.fixture
def autoencoder() -> Autoencoder:
    vit = ViTConfig(width=12, depth=1, heads=3)
    return Autoencoder(AutoencoderConfig(16, 8, 2, 4, encoder=vit, decoder=vit), {"prior": "abc"}).eval()


def test_it_is_read_from_a_folder_by_the_same_call(autoencoder, tmp_path):
    autoencoder.save(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).fingerprint == autoencoder.fingerprint


def test_it_is_read_from_the_hubs_cache_by_its_name(autoencoder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--user--tokenizer"
    autoencoder.save(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    read = Autoencoder.from_pretrained("user/tokenizer", cache_dir=tmp_path, local_files_only=True)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(read.encode(images), autoencoder.encode(images)) and read.about == autoencoder.about


def test_a_name_that_is_nowhere_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nobody/nothing") as caught:
        Autoencoder.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
    assert "HF_HOME" in str(caught.value) and "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload talks to; it remembers the files of the commit."""

    files: dict[str, bytes] = {}
    asked: list[tuple[str, dict]] = []
    refuses = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        self.asked.append((self.path, lines[0] if lines else {}))
        own = f"http://127.0.0.1:{self.server.server_port}/user/tokenizer"
        answer = {"url": own}
        if "/preupload/" in self.path:
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            answer = {"files": modes}
        elif "/commit/" in self.path:
            values = [line["value"] for line in lines if line["key"] == "file"]
            self.files.update({value["path"]: base64.b64decode(value["content"]) for value in values})
            answer = {
                "commitUrl": f"{own}/commit/0",
                "commitOid": "0" * 40,
                "pullRequestUrl": None,
            }
        data = json.dumps(answer).encode()
        self.send_response(401 if self.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A class of hub that answers in place of the real one; a fresh one for every test."""
    handler = type("FreshHub", (Hub,), {"files": {}, "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for module in (huggingface_hub.constants, huggingface_hub.hf_api):  # older versions keep a copy
        monkeypatch.setattr(module, "ENDPOINT", f"http://127.0.0.1:{server.server_port}", raising=False)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_hub_that_refuses_an_upload_is_one_sentence(autoencoder, hub):
    hub.refuses = True
    with pytest.raises(UserError, match="cannot upload to user/tokenizer") as caught:
        autoencoder.push_to_hub("user/tokenizer", private=True, token="hf_none")
    assert "\n" not in str(caught.value)
    [(path, body)] = hub.asked
    assert path == "/api/repos/create" and body["name"] == "tokenizer"


@pytest.mark.parametrize("model", ["autoencoder", "prior"])
def test_what_is_uploaded_is_the_folder_from_which_the_model_is_read_again(model, autoencoder, hub, tmp_path):
    sent = autoencoder if model == "autoencoder" else random_prior(4)
    assert sent.push_to_hub("user/model", token="hf_none").endswith("/user/model")
    assert set(hub.files) == {"model.safetensors", "config.json"}
    for name, data in hub.files.items():
        (tmp_path / name).write_bytes(data)
    assert type(sent).from_pretrained(tmp_path).fingerprint == sent.fingerprint
