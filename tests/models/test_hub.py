"""Files from a hub that answers on this machine: what is asked for, and with which token."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch

from ddim_lightning import DDIMInversionModule
from ddim_lightning.models.checkpoint import read_limits
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.source import Source
from tests.random_tiny import write_random_tiny

CPU = torch.device("cpu")
COMMITS = {"main": "0" * 40, "v1": "1" * 40}


def digest(name):
    return hashlib.sha1(name.encode()).hexdigest()


def find(top, path):
    """Find what the hub answers: the content, and headers; ``None`` is not found."""
    words = path.removeprefix("api/models/").split("/")
    folder = top.joinpath(*words[:2])
    if not path.startswith("api/models/"):
        file = folder.joinpath(*words[4:])
        etag = f'"{digest("/".join(words[4:]))}"'
        return (file.read_bytes(), {"ETag": etag, "X-Repo-Commit": words[3]}) if file.is_file() else None
    commit = COMMITS.get(words[3], words[3]) if len(words) > 3 else COMMITS["main"]
    files = {str(one.relative_to(folder)): one for one in sorted(folder.rglob("*")) if one.is_file()}
    tree = [
        {"type": "file", "path": name, "size": one.stat().st_size, "oid": digest(name)} for name, one in files.items()
    ]
    info = {"id": "/".join(words[:2]), "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    answer = json.dumps(tree if "tree" in words else info).encode()
    return (answer, {}) if files and commit in COMMITS.values() else None


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with ``someone/videos`` (a pipeline in ``model``, fp16 alone) and ``someone/tuned``, a transformer."""
    top = tmp_path / "hub"
    videos = top / "someone" / "videos" / "model"
    write_random_tiny(videos)
    for part in ("transformer", "vae", "text_encoder"):
        for path in (videos / part).glob("*.safetensors"):
            path.rename(path.with_name(path.name.replace(".safe", ".fp16.safe")))
    tuned = write_random_tiny(tmp_path / "tuned", seed=7) / "transformer"
    tuned.rename(top / "someone" / "tuned")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0].strip("/")
            if path.startswith(("api/models/", "someone/")):
                seen.append((path, self.headers.get("Authorization")))
            found = find(top, path)
            content, headers = (b"", {"X-Error-Code": "RevisionNotFound"}) if found is None else found
            self.send_response(404 if found is None else 200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": here,
        "HUGGINGFACE_CO_URL_TEMPLATE": here + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield seen
    server.shutdown()
    server.server_close()


def test_only_what_is_wanted_is_fetched_and_the_token_stays_where_it_is_needed(hub, tmp_path, caplog):
    kept = str(tmp_path / "kept")
    source = Source(subfolder="model", revision="v1", variant="fp16", cache_dir=kept, transformer="someone/tuned")
    assert read_limits("someone/videos", source, token="hf_secret").num_frames == 9
    assert not [path for path, _ in hub if path.endswith(".safetensors")]
    module = DDIMInversionModule.from_pretrained(
        "someone/videos", device="cpu", source=source, token="hf_secret", runtime={"dtype": "float32"}
    )
    fetched = {path.split("/", 4)[4] for path, _ in hub if path.endswith(".safetensors")}
    assert fetched == {
        "diffusion_pytorch_model.safetensors",
        "model/vae/diffusion_pytorch_model.fp16.safetensors",
        "model/text_encoder/model.fp16.safetensors",
    }
    assert {path.split("/")[3] for path, _ in hub if path.startswith("someone/videos/")} == {COMMITS["v1"]}
    assert {token for _, token in hub} == {"Bearer hf_secret"}
    told = [repr(module), repr(vars(module)), str(module.describe()), str(module.hparams), caplog.text]
    assert "hf_secret" not in " ".join(told)
    # All of it is here now.
    again = Source(**{**vars(source), "local_files_only": True})
    asked = len(hub)
    theirs = load_components("someone/videos", again, device=CPU, dtype=torch.float32).transformer.state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in module.transformer.state_dict().items())
    assert len(hub) == asked


def test_a_repository_says_which_weights_it_has(hub):
    for variant, said in ((None, "lacks weights"), ("bf16", "must have weights of variant 'bf16'")):
        source = Source(subfolder="model", variant=variant)
        with pytest.raises((OSError, ValueError), match=f"{said}.*; the repository has .*model.fp16.safetensors"):
            load_components("someone/videos", source, device=CPU, dtype=torch.float32)


def test_a_revision_that_is_not_there_is_named(hub):
    with pytest.raises(OSError, match=r"^model: .* at revision 'v2': .+") as caught:
        read_limits("someone/videos", Source(revision="v2"))
    assert "\n" not in str(caught.value)
