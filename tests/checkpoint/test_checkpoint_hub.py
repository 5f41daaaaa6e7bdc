"""``fetch`` against a Hub on loopback: what is asked for, what is left alone, what is said when it fails."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_hub import READ_TOKEN, WRITE_TOKEN, FakeHub
from hub_client import run_client

FETCH = """
from mcompose.checkpoint import hub
from mcompose.refs import ModelRef
snapshot = hub.fetch(ModelRef.parse({ref!r}), weights={weights})
result = {{
    "commit": snapshot.commit,
    "files": dict(snapshot.files),
    "digests": dict(snapshot.digests),
    "headers": snapshot.headers and {{k: v.hex() for k, v in snapshot.headers.items()}},
    "fetched": sorted(str(p.relative_to(snapshot.folder)) for p in snapshot.folder.rglob("*") if p.is_file()),
    "folder": str(snapshot.folder),
}}
"""


def shards() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    first = {"a.weight": rng.standard_normal((300, 300)).astype(np.float32)}
    second = {"b.weight": rng.standard_normal((7, 3)).astype(np.float32), "b.bias": np.zeros(3, np.float32)}
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"weight_map": {"a.weight": one, "b.weight": two, "b.bias": two}}
    return {one: save(first), two: save(second), "model.safetensors.index.json": json.dumps(index).encode()}


NEEDED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "preprocessor_config.json": b"{}",
    "generation_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle" * 1000,
    "consolidated.safetensors": b"\0" * 1000,
    "modeling_own.py": b"raise SystemExit",
    "training_args.bin": b"pickle",
    "onnx/model.onnx": b"onnx",
    "trainer_state.json": b"{}",
    "original/params.json": b"{}",
}


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


def fetch(hub: FakeHub, home: Path, ref: str, *, weights: bool = True, **options):
    return run_client(hub, home, FETCH.format(ref=ref, weights=weights), **options)[0]


def header_of(data: bytes) -> str:
    return data[: 8 + int.from_bytes(data[:8], "little")].hex()


def test_checkpoint_hub_fetches_only_what_is_needed_at_one_commit(hub, tmp_path):
    weights = shards()
    commit = hub.add("org/model", NEEDED | weights | UNWANTED)
    result = fetch(hub, tmp_path, "hub:org/model")
    assert result["commit"] == commit
    assert result["fetched"] == sorted(NEEDED | weights)
    assert result["headers"] is None
    assert result["files"] == {name: len(data) for name, data in (NEEDED | weights | UNWANTED).items()}
    for name, data in weights.items():
        assert (Path(result["folder"]) / name).read_bytes() == data
        if name.endswith(".safetensors"):
            assert result["digests"][name] == hashlib.sha256(data).hexdigest()
    resolved = [r.path for r in hub.log if "/resolve/" in r.path]
    assert resolved
    assert all(f"/resolve/{commit}/" in path for path in resolved)


def test_checkpoint_hub_reads_headers_without_weights(hub, tmp_path):
    weights = shards()
    hub.add("org/model", NEEDED | weights)
    result = fetch(hub, tmp_path, "hub:org/model", weights=False)
    names = [name for name in weights if name.endswith(".safetensors")]
    assert result["headers"] == {name: header_of(weights[name]) for name in names}
    assert not [name for name in result["fetched"] if name.endswith(".safetensors")]
    assert hub.sent("00001-of-00002") <= 100_000 < len(weights[names[0]])


def test_checkpoint_hub_reads_a_long_header_in_a_second_request(hub, tmp_path):
    data = save({f"layers.{k}.{'x' * 80}": np.zeros(1, np.float32) for k in range(1500)})
    assert int.from_bytes(data[:8], "little") > 100_000
    hub.add("org/model", NEEDED | {"model.safetensors": data + b""})
    result = fetch(hub, tmp_path, "hub:org/model", weights=False)
    assert result["headers"] == {"model.safetensors": header_of(data)}


@pytest.mark.parametrize("fault", ["ignore_range", "reset_downloads"])
def test_checkpoint_hub_headers_survive_a_poor_server(hub, tmp_path, fault):
    data = save({f"layers.{k}.{'x' * 80}": np.zeros(1, np.float32) for k in range(1500)})
    hub.add("org/model", NEEDED | {"model.safetensors": data})
    setattr(hub.faults, fault, 1)
    result = fetch(hub, tmp_path, "hub:org/model", weights=False)
    assert result["headers"] == {"model.safetensors": header_of(data)}


def test_checkpoint_hub_refuses_an_absurd_header_before_reading_it(hub, tmp_path):
    hub.add("org/model", NEEDED | {"model.safetensors": (2**40).to_bytes(8, "little") + b"{}" * 100})
    result = fetch(hub, tmp_path, "hub:org/model", weights=False)
    assert result["error"] == "CheckpointError"
    assert "1099511627776" in result["message"]


def test_checkpoint_hub_never_follows_an_index_out_of_its_folder(hub, tmp_path):
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    hub.add("org/model", NEEDED | {"model.safetensors.index.json": index})
    for weights in (True, False):
        result = fetch(hub, tmp_path, "hub:org/model", weights=weights)
        assert result["error"] == "CheckpointError"
        assert "which is not a safetensors file in its folder" in result["message"]


def test_checkpoint_hub_pinned_revision_is_not_the_newest(hub, tmp_path):
    old = hub.add("org/model", NEEDED | {"model.safetensors": save({"a": np.zeros(2, np.float32)})})
    new = hub.add("org/model", NEEDED | {"model.safetensors": save({"a": np.ones(2, np.float32)})})
    assert fetch(hub, tmp_path, f"hub:org/model@{old}")["commit"] == old
    assert fetch(hub, tmp_path, "hub:org/model@main")["commit"] == new


def test_checkpoint_hub_second_fetch_and_offline_fetch_use_the_cache(hub, tmp_path):
    weights = shards()
    hub.add("org/model", NEEDED | weights)
    first = fetch(hub, tmp_path, "hub:org/model")
    sent = hub.sent("/cdn/")
    assert fetch(hub, tmp_path, "hub:org/model") == first
    assert fetch(hub, tmp_path, "hub:org/model", weights=False)["headers"].keys() == {
        name for name in weights if name.endswith(".safetensors")
    }
    assert hub.sent("/cdn/") == sent, "nothing was fetched twice"
    requests = len(hub.log)
    offline = fetch(hub, tmp_path, "hub:org/model", HF_HUB_OFFLINE="1")
    assert len(hub.log) == requests
    assert (offline["commit"], offline["folder"]) == (first["commit"], first["folder"])
    assert offline["digests"] == first["digests"]
    pinned = fetch(hub, tmp_path, f"hub:org/model@{first['commit']}", HF_HUB_OFFLINE="1", weights=False)
    assert pinned["headers"] == {n: header_of(d) for n, d in weights.items() if n.endswith(".safetensors")}


def test_checkpoint_hub_offline_without_a_cache_says_so(hub, tmp_path):
    hub.add("org/model", NEEDED | shards())
    result = fetch(hub, tmp_path, "hub:org/model", HF_HUB_OFFLINE="1")
    assert result["error"] == "HubError"
    assert result["message"] == "'hub:org/model' is not in the Hub's cache."


def test_checkpoint_hub_offline_with_headers_only_asks_for_the_weights(hub, tmp_path):
    hub.add("org/model", NEEDED | shards())
    fetch(hub, tmp_path, "hub:org/model", weights=False)
    result = fetch(hub, tmp_path, "hub:org/model", HF_HUB_OFFLINE="1")
    assert result["message"] == "The weights of 'hub:org/model' are not in the Hub's cache."


def test_checkpoint_hub_pinned_commit_needs_no_connection_when_cached(hub, tmp_path):
    commit = hub.add("org/model", NEEDED | shards())
    fetch(hub, tmp_path, f"hub:org/model@{commit}")
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert fetch(hub, tmp_path, f"hub:org/model@{commit}", **dead)["commit"] == commit
    branch = fetch(hub, tmp_path, "hub:org/model", **dead)
    assert branch["error"] == "HubError"
    assert "failed for" in branch["message"]


def test_checkpoint_hub_fetches_adapters(hub, tmp_path):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": save({"a": np.zeros(2, np.float32)})}
    hub.add("org/lora", files | {"adapter_model.bin": b"pickle"})
    assert fetch(hub, tmp_path, "hub:org/lora")["fetched"] == sorted(files)


@pytest.mark.parametrize(
    ("ref", "error", "message", "hint"),
    [
        (
            "hub:org/modle",
            "CheckpointError",
            "The Hub does not have a repository 'org/modle'",
            "Did you mean 'org/model'?",
        ),
        ("hub:nobody/x", "CheckpointError", "The Hub does not have a repository 'nobody/x'", "private"),
        ("hub:org/model@mian", "CheckpointError", "does not have the revision 'mian'", "Did you mean 'main'?"),
        ("hub:org/gated", "HubError", "'org/gated' is gated", "Accept its terms"),
        ("hub:org/pickle", "CheckpointError", "pickle ('pytorch_model.bin')", "save_pretrained"),
    ],
)
def test_checkpoint_hub_says_what_is_wrong(hub, tmp_path, ref, error, message, hint):
    hub.add("org/model", NEEDED | shards())
    hub.add("org/gated", NEEDED | shards(), gated=True)
    hub.add("org/pickle", NEEDED | {"pytorch_model.bin": b"x"})
    result = fetch(hub, tmp_path, ref, token=READ_TOKEN)
    assert result["error"] == error
    assert message in result["message"]
    assert hint in result["hint"]


def test_checkpoint_hub_private_repository_without_token_points_to_log_in(hub, tmp_path):
    hub.add("org/secret", NEEDED | shards(), private=True)
    result = fetch(hub, tmp_path, "hub:org/secret", token=None)
    assert result["error"] == "CheckpointError"
    assert "hf auth login" in result["hint"]
    assert fetch(hub, tmp_path, "hub:org/secret", token=READ_TOKEN)["commit"]


def test_checkpoint_hub_wrong_token_is_named_but_never_shown(hub, tmp_path):
    hub.add("org/model", NEEDED | shards())
    hub.faults.echo_token = True
    wrong = "hf_WrongTokenThatNobodyMaySee00000"
    result, printed = run_client(hub, tmp_path, FETCH.format(ref="hub:org/model", weights=True), token=wrong)
    assert result["error"] == "HubError"
    assert "does not accept the token" in result["message"]
    assert "hf auth login" in result["hint"]
    assert wrong not in json.dumps(result) + printed


def test_checkpoint_hub_token_goes_to_the_hub_only(hub, tmp_path):
    hub.add("org/model", NEEDED | shards())
    fetch(hub, tmp_path, "hub:org/model", weights=False)
    fetch(hub, tmp_path, "hub:org/model")
    asked = [r for r in hub.log if "/cdn/" not in r.path]
    storage = [r for r in hub.log if "/cdn/" in r.path]
    assert all(r.authorization == f"Bearer {WRITE_TOKEN}" for r in asked)
    assert storage
    assert not any(r.authorization for r in storage)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert WRITE_TOKEN.encode() not in written


def test_checkpoint_hub_redacts_every_token(hub, tmp_path):
    code = f"""
from mcompose.checkpoint.hub import redact
result = redact("Bearer sec.ret and hf_abcdefghij and {WRITE_TOKEN} and byhand", token="byhand")
"""
    assert run_client(hub, tmp_path, code)[0] == "Bearer *** and *** and *** and ***"
