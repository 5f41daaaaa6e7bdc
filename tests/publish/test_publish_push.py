"""``push`` against a Hub on loopback: what arrives, what is refused, and that no token is seen anywhere."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_hub import READ_TOKEN, WRITE_TOKEN, FakeHub
from hub_client import run_client
from publish_samples import LEDGER, RECIPE, small_output

from mcompose.publish import model_card

PUSH = """
from mcompose.publish import push
report = push(Path({folder!r}), {repo_id!r}, **{options!r})
print(report.to_text())
result = report.to_dict()
"""


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def output(tmp_path):
    return small_output(tmp_path / "out")


def run(hub, tmp_path, output, repo_id="tester/model", *, token: str | None = WRITE_TOKEN, extra=None, **options):
    code = PUSH.format(folder=str(output), repo_id=repo_id, options=options)
    return run_client(hub, tmp_path / "home", code, token=token, **(extra or {}))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_publish_push_uploads_everything_and_reads_it_back(hub, tmp_path, output):
    result, printed = run(hub, tmp_path, output)
    repo = hub.repos["tester/model"]
    there = {path: blob.data for path, blob in repo.files.items() if path != ".gitattributes"}
    assert there == contents(output)
    assert there["README.md"].decode() == model_card(LEDGER, output, "tester/model")
    assert result["commit"] == repo.refs["main"]
    assert result["url"] == f"{hub.endpoint}/tester/model"
    assert result["bytes"] == sum(map(len, there.values()))
    assert {f["path"]: (f["size"], f["sha256"]) for f in result["files"]} == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in there.items()
    }
    assert repo.messages[result["commit"]] == "Upload sees-and-hears, merged by naivemc"
    assert not repo.private
    assert "read back and equal" in printed


def test_publish_push_private(hub, tmp_path, output):
    run(hub, tmp_path, output, private=True)
    assert hub.repos["tester/model"].private


def test_publish_push_private_never_goes_to_a_public_repository(hub, tmp_path, output):
    hub.add("tester/model", {"notes.txt": b"x"})
    result, _ = run(hub, tmp_path, output, private=True)
    assert result["error"] == "OutputError"
    assert "exists and is public" in result["message"]
    assert set(hub.repos["tester/model"].files) == {"notes.txt"}


def test_publish_push_dry_run_touches_nothing(hub, tmp_path, output):
    before = contents(output)
    result, printed = run(hub, tmp_path, output, token=None, dry_run=True, private=True)
    assert hub.log == []
    assert contents(output) == before
    card = model_card(LEDGER, output, "tester/model").encode()
    planned = {f["path"]: (f["size"], f["sha256"]) for f in result["files"]}
    assert planned.pop("README.md") == (len(card), hashlib.sha256(card).hexdigest())
    assert planned == {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in before.items()}
    assert (result["dry_run"], result["commit"], result["url"]) == (True, "", "")
    assert "Would upload" in printed
    assert "private repository 'tester/model'" in printed
    assert "model-00001-of-00002.safetensors  2,4" in printed


def test_publish_push_pull_request_leaves_the_main_branch(hub, tmp_path, output):
    hub.add("other/model", {"notes.txt": b"x"})
    main = hub.repos["other/model"].refs["main"]
    result, _ = run(hub, tmp_path, output, "other/model", create_pr=True, commit_message="Better weights")
    repo = hub.repos["other/model"]
    assert repo.refs["main"] == main
    assert repo.refs["refs/pr/1"] == result["commit"]
    assert result["url"].endswith("/other/model/discussions/1")
    assert repo.messages[result["commit"]] == "Better weights"
    assert set(contents(output)) < set(repo.commits[result["commit"]])


def test_publish_push_pull_request_needs_no_write_permission(hub, tmp_path, output):
    hub.add("other/model", {"notes.txt": b"x"})
    result, _ = run(hub, tmp_path, output, "other/model", token=READ_TOKEN, create_pr=True)
    assert result["url"].endswith("/discussions/1")


def test_publish_push_again_sends_nothing_and_stale_shards_go(hub, tmp_path, output):
    old = {"model-00003-of-00009.safetensors": b"old", "model.safetensors": b"old", "figure.txt": b"mine"}
    hub.add("tester/model", old)
    first, _ = run(hub, tmp_path, output)
    assert set(hub.repos["tester/model"].files) == set(contents(output)) | {"figure.txt"}
    hub.log.clear()
    second, _ = run(hub, tmp_path, output)
    assert second["commit"] == first["commit"]
    assert not [r for r in hub.log if r.method == "PUT" or "/commit/" in r.path]


def test_publish_push_leaves_working_files_at_home(hub, tmp_path, output):
    extra = ["model.safetensors.partial", ".mcompose-journal.jsonl", ".git/config", "optimizer.pt", "a/.cache/x"]
    for name in extra:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(b"x")
    result, printed = run(hub, tmp_path, output)
    assert result["skipped"] == sorted(extra)
    assert not set(extra) & set(hub.repos["tester/model"].files)
    assert "not published: " in printed


def test_publish_push_keeps_a_card_that_was_edited(hub, tmp_path, output):
    (output / "README.md").write_text("# Mine\n")
    result, printed = run(hub, tmp_path, output)
    assert result["card"] == "kept"
    assert hub.repos["tester/model"].files["README.md"].data == b"# Mine\n"
    assert "edited by hand" in printed


def test_publish_push_says_which_records_name_this_machine(hub, tmp_path):
    output = small_output(tmp_path / "out", recipe=RECIPE.replace("local:donors", "local:/home/me/donors"))
    result, _ = run(hub, tmp_path, output, dry_run=True)
    assert result["notes"][0] == (
        "mcompose/recipe.yaml names a path of this machine, which readers will see: /home/me/donors/audio"
    )


@pytest.mark.parametrize("path", ["model-00002-of-00002.safetensors", "config.json"])
@pytest.mark.parametrize(("fault", "words"), [("corrupt", "differs from the file"), ("lose", "does not hold")])
def test_publish_push_notices_a_bad_upload(hub, tmp_path, output, path, fault, words):
    setattr(hub.faults, fault, (path,))
    result, _ = run(hub, tmp_path, output)
    assert result["error"] == "HubError"
    assert f"'{path}'" in result["message"]
    assert words in result["message"]


def test_publish_push_survives_a_reset_and_resumes_after_a_break(hub, tmp_path, output):
    hub.faults.reset_uploads = 1
    assert run(hub, tmp_path, output)[0]["commit"] == hub.repos["tester/model"].refs["main"]
    hub.repos.clear()
    hub.objects.clear()
    hub.faults.fail_commits = 1
    broken, _ = run(hub, tmp_path, output)
    assert (broken["error"], broken["hint"]) == ("HubError", "Try again later.")
    hub.log.clear()
    assert run(hub, tmp_path, output)[0]["commit"]
    assert not [r for r in hub.log if r.method == "PUT"], "large files had arrived"


def test_publish_push_says_when_the_connection_stays_broken(hub, tmp_path, output):
    hub.faults.reset_uploads = 100
    result, _ = run(hub, tmp_path, output)
    assert result["error"] == "HubError"
    assert "failed for" in result["message"]
    assert "run again" in result["hint"]


def test_publish_push_without_a_network(hub, tmp_path, output):
    result, _ = run(hub, tmp_path, output, extra={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (result["error"], "failed for" in result["message"]) == ("HubError", True)
    result, _ = run(hub, tmp_path, output, extra={"HF_HUB_OFFLINE": "1"})
    assert result["error"] == "HubError"


def test_publish_push_interrupted_by_the_user(hub, tmp_path, output):
    code = PUSH.format(folder=str(output), repo_id="tester/model", options={})
    stop = "def stop(*a, **k): raise KeyboardInterrupt\n"
    stop += "import huggingface_hub\nhuggingface_hub.HfApi.upload_folder = stop\n"
    result, _ = run_client(hub, tmp_path / "home", stop + code)
    assert result["error"] == "InterruptedRunError"
    assert "not sent twice" in result["hint"]


@pytest.mark.parametrize(
    ("token", "repo_id", "error", "words", "hint"),
    [
        (None, "tester/model", "HubError", "No Hub token", "hf auth login"),
        (READ_TOKEN, "tester/model", "HubError", "does not let this token", "write permission"),
        (WRITE_TOKEN, "forbidden/model", "HubError", "does not let this token", "--create-pr"),
        ("hf_ThisOneIsNotKnownToTheHub000000", "tester/model", "HubError", "does not accept the token", "HF_TOKEN"),
        (WRITE_TOKEN, "model", "RequestError", "not a valid repository name", "org/name"),
        (WRITE_TOKEN, "a/b/c", "RequestError", "not a valid repository name", "org/name"),
        (WRITE_TOKEN, "tester/mo del", "RequestError", "not a valid repository name", "org/name"),
        (WRITE_TOKEN, "tester/..", "RequestError", "not a valid repository name", "org/name"),
    ],
)
def test_publish_push_refusals_are_one_clear_sentence(hub, tmp_path, output, token, repo_id, error, words, hint):
    result, _ = run(hub, tmp_path, output, repo_id, token=token)
    assert result["error"] == error
    assert words in result["message"]
    assert hint in result["hint"]
    assert "\n" not in result["message"]
    assert repo_id not in hub.repos


@pytest.mark.parametrize("missing", ["mcompose/ledger.json", "mcompose/lock.json", "config.json", "*.safetensors"])
def test_publish_push_refuses_what_is_not_a_finished_output(hub, tmp_path, output, missing):
    for path in list(output.glob(missing)):
        path.unlink()
    result, _ = run(hub, tmp_path, output)
    assert result["error"] == "CheckpointError"
    assert hub.log == []


def test_publish_push_refuses_a_partial_folder(hub, tmp_path, output):
    result, _ = run(hub, tmp_path, output.rename(tmp_path / "out.partial"))
    assert "unfinished" in result["message"]


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_publish_push_refuses_files_that_are_not_what_the_lock_says(hub, tmp_path, output, how):
    file = output / "tokenizer.json"
    file.write_text("[]") if how == "changed" else file.unlink()
    result, _ = run(hub, tmp_path, output)
    assert result["error"] == "CheckpointError"
    assert "'tokenizer.json'" in result["message"]
    assert hub.log == []


def test_publish_push_refuses_a_file_that_holds_the_token(hub, tmp_path, output):
    (output / "notes.txt").write_text(f"my token is {WRITE_TOKEN}")
    result, printed = run(hub, tmp_path, output)
    assert result["error"] == "OutputError"
    assert "'notes.txt' holds an access token" in result["message"]
    assert WRITE_TOKEN not in json.dumps(result) + printed
    assert hub.log == []


@pytest.mark.parametrize("case", ["good", "wrong token", "read token", "by hand"])
def test_publish_push_no_token_in_any_output_or_file(hub, tmp_path, output, case):
    hub.faults.echo_token = True
    token = {"wrong token": "hf_WrongTokenThatNobodyMaySee00000", "read token": READ_TOKEN}.get(case, WRITE_TOKEN)
    if case == "by hand":
        hub.users = {"plain-secret-of-no-known-form": ("tester", "write")}
        hub.faults.fail_commits = 1
        token = "plain-secret-of-no-known-form"
        code = PUSH.format(folder=str(output), repo_id="tester/model", options={"token": token})
        result, printed = run_client(hub, tmp_path / "home", code, token=None)
    else:
        result, printed = run(hub, tmp_path, output, token=token)
    assert ("error" in result) == (case != "good")
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    uploaded = b"".join(b.data for repo in hub.repos.values() for f in repo.commits.values() for b in f.values())
    assert token not in json.dumps(result) + printed
    assert token.encode() not in written + uploaded
