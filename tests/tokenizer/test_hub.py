"""A trained autoencoder on the Hugging Face hub, as far as it goes without a network."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from flowprior.errors import UserError
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


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody, and remembers what it was asked."""

    asked: list[tuple[str, dict]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, json.loads(body or b"{}")))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_hub_that_refuses_an_upload_is_one_sentence(autoencoder, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(UserError, match="cannot upload to user/tokenizer") as caught:
        autoencoder.push_to_hub("user/tokenizer", private=True, token="hf_none")
    server.shutdown()
    assert "\n" not in str(caught.value)
    [(path, body)] = Refusing.asked
    assert path == "/api/repos/create" and body["name"] == "tokenizer"
