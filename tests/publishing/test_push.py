"""Pushes to a fake Hub on this machine.

Child processes do it: huggingface_hub reads its environment when it is imported.
"""

import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import threading

import pytest

from tests.hub.fakehub import FakeHub

TOKEN = "hf_SecretOfTheTestThatNobodyMaySee"
PAUSES = [2.0, 4.0, 8.0, 16.0, 32.0]
CHILD = """
import json, os, pathlib, sys, time, traceback
from cramjax.errors import RunFailed, UserError
import cramjax.publishing.push as pushing
assert "huggingface_hub" not in sys.modules, "importing the module is not cheap"
from huggingface_hub import get_session
slept, timeout = [], get_session().timeout
time.sleep = slept.append

def fetched(name):
    from huggingface_hub import constants
    from cramjax.hub import download
    constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.2
    try:
        return {"path": str(download.download(name))}
    except UserError as error:
        return {"message": str(error)}

def answer(
    directory=None, repo_id=None, token=None, download=None, model=None, timeout_s=60.0, **options
):
    if model:
        return fetched(model)
    if download:
        from huggingface_hub import snapshot_download
        return {"path": snapshot_download(download, **options)}
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    told = []
    slept.clear()
    pushing._TIMEOUT_S = (timeout_s,) * 4
    directory = pathlib.Path(directory)
    try:
        result = {"url": pushing.push(directory, repo_id, tell=told.append, **options)}
    except (RunFailed, UserError) as error:
        traceback.print_exc()  # a caller may show it
        result = {"error": type(error).__name__, "message": str(error)}
    client = get_session()
    assert "request" not in vars(client), "the request of the push is left behind"
    assert client.timeout == timeout, "the timeout of the push is left behind"
    return {"told": told, "slept": slept, **result}

for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)
"""


class Pusher:
    """A child process that pushes, one call after the other, and never sleeps."""

    def __init__(self, root, environment, log):
        self.log = log
        self.output = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=environment | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def ask(self, **question):
        limit = threading.Timer(60, self.process.kill)
        limit.start()
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        self.output.append(self.process.stdout.readline())
        limit.cancel()
        assert self.output[-1], self.log.read_text()[-3000:]
        return json.loads(self.output[-1])

    def push(self, directory, repo_id, token=TOKEN, message="A model", **options):
        return self.ask(
            directory=str(directory), repo_id=repo_id, token=token, message=message, **options
        )

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def hub():
    with FakeHub(TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def pusher(hub, root, tmp_path_factory):
    home = tmp_path_factory.mktemp("pusher")
    child = Pusher(root, hub.environment(home / "hf"), home / "log")
    yield child
    child.end()


@pytest.fixture(autouse=True)
def quiet(hub):
    """Each test starts without faults and without requests of another test."""
    hub.faults.clear()
    hub.requests.clear()


@pytest.fixture
def export(tmp_path):
    """A model to push.

    Its two files of weights and its picture are large files that no other test has sent.
    """
    directory = tmp_path / "export"
    (directory / "images").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "bert"}')
    (directory / "tokenizer.json").write_text("{}")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (directory / "images" / "loss.png").write_bytes(b"\x89PNG\0" + str(tmp_path).encode())
    for part in (1, 2):
        content = random.Random(f"{tmp_path} {part}").randbytes(3_000_000)
        (directory / f"model-0000{part}-of-00002.safetensors").write_bytes(content)
    return directory


def contents(directory):
    """Returns name → bytes of all files in a directory."""
    files = {}
    for path in directory.rglob("*"):
        if path.is_file():
            files[path.relative_to(directory).as_posix()] = path.read_bytes()
    return files


def pushed(hub, repo_id, branch="main"):
    """Returns the files of the last commit, without the Hub's own, and all commit messages."""
    commits = hub.repos[repo_id].branches[branch]
    files = {name: file.content for name, file in commits[-1].files.items()}
    del files[".gitattributes"]
    return files, [commit.summary for commit in commits]


def test_a_new_repository_gets_all_files_in_one_commit(hub, pusher, export):
    expected = contents(export)
    (export / ".cache").mkdir()
    (export / ".cache" / "left").write_text("by a download")
    done = pusher.push(export, "me/new", private=True)
    assert done["told"] == done["slept"] == []
    assert pushed(hub, "me/new") == (expected, ["initial commit", "A model"])
    repo = hub.repos["me/new"]
    assert done["url"] == f"{hub.url}/me/new/commit/{repo.branches['main'][-1].oid}"
    assert repo.private

    uploads = hub.asked("PUT /storage/")
    assert len(uploads) == 3
    assert not any(request.authorization for request in uploads)
    assert all(request.authorization == f"Bearer {TOKEN}" for request in hub.asked("POST"))


def test_what_was_pushed_can_be_downloaded(hub, pusher, export):
    pusher.push(export, "me/there", revision="step/100")
    answer = pusher.ask(download="me/there", revision="step/100")
    attributes = hub.repos["me/there"].branches["main"][0].files[".gitattributes"].content
    expected = contents(export) | {".gitattributes": attributes}
    assert contents(pathlib.Path(answer["path"])) == expected


def test_a_download_that_fails_says_why_in_one_sentence(hub, pusher, export):
    pusher.push(export, "me/model")
    limit = {"status": 429, "headers": {"Retry-After": "77"}, "times": 99}
    hub.faults.append({"match": "GET /api/models/me/model", **limit})
    assert "limits the rate of requests (429); wait 77 s" in pusher.ask(model="me/model")["message"]

    hub.faults[:] = [{"match": "GET /me/model/resolve/", "drop": "never", "times": 99}]
    message = pusher.ask(model="me/model")["message"]
    assert message.startswith("me/model: the connection to the Hub failed") and "\n" not in message

    hub.faults.clear()
    fetched = contents(pathlib.Path(pusher.ask(model="me/model")["path"]))
    assert fetched and fetched.items() <= contents(export).items()


def test_a_repository_with_a_name_that_leads_out_is_refused(hub, pusher, export):
    pusher.push(export, "me/evil")
    commit = hub.repos["me/evil"].branches["main"][-1]
    files = commit.files | {"../../evil.safetensors": commit.files["config.json"]}
    hub.repos["me/evil"].branches["main"].append(
        dataclasses.replace(commit, oid="e" * 40, files=files)
    )
    message = pusher.ask(model="me/evil")["message"]
    assert "a file whose name leads out of its folder; do not use this model" in message


def test_pushing_again_sends_what_changed(hub, pusher, export):
    first = pusher.push(export, "me/again")
    hub.requests.clear()
    assert pusher.push(export, "me/again")["url"] == first["url"]
    assert not hub.asked("/commit/") and not hub.asked("PUT /storage/")

    (export / "README.md").write_text("# Another\n")
    assert pusher.push(export, "me/again", message="Words")["url"] != first["url"]
    (commit,) = hub.asked("/commit/")
    assert [line["value"].get("path") for line in commit.body[1:]] == ["README.md"]
    assert pushed(hub, "me/again") == (contents(export), ["initial commit", "A model", "Words"])
    assert not hub.repos["me/again"].private


def test_a_branch_is_made_and_the_main_one_left_alone(hub, pusher, export):
    assert "url" in pusher.push(export, "me/branch", revision="step/100")
    assert "url" in pusher.push(export, "me/branch", revision="step/100")
    assert pushed(hub, "me/branch", "step/100") == (contents(export), ["initial commit", "A model"])
    assert pushed(hub, "me/branch") == ({}, ["initial commit"])


def test_a_public_repository_stays_public_and_that_is_said_once(hub, pusher, export):
    pusher.push(export, "me/public")
    (export / "README.md").write_text("# Another\n")
    hub.faults = [{"match": "/commit/", "status": 500}]
    done = pusher.push(export, "me/public", private=True)
    assert "url" in done and not hub.repos["me/public"].private
    (notice,) = [line for line in done["told"] if "trying again" not in line]
    address = f"{hub.url}/me/public/settings"
    assert notice == f"me/public: exists and stays public; make it private under {address}"


@pytest.mark.parametrize(
    "step",
    [
        "/create",
        "/branch/",
        "/validate-yaml",
        "/preupload/",
        "/batch",
        "PUT /storage/",
        "/verify",
        "/commit/",
    ],
)
def test_trouble_at_any_step_is_waited_for(hub, pusher, export, step):
    repo_id = f"me/trouble-at-{step.strip('/ ').split('/')[-1]}"
    hub.faults = [{"match": step, "status": 500}, {"match": step, "drop": "half"}]
    done = pusher.push(export, repo_id, revision="other")
    assert "url" in done, done
    assert pushed(hub, repo_id, "other") == (contents(export), ["initial commit", "A model"])
    # Files are sent side by side, so that both troubles may fall into one attempt.
    assert done["slept"] in ([2.0, 4.0], [2.0])
    assert done["slept"] == [2.0, 4.0] or step in ("PUT /storage/", "/verify")
    assert len(done["told"]) == len(done["slept"])
    assert "trying again in 2 s (attempt 2 of 6)" in done["told"][0]


def test_only_what_broke_is_sent_again(hub, pusher, export):
    hub.faults = [{"match": "PUT /storage/", "drop": "half"}]
    done = pusher.push(export, "me/broken")
    assert done["slept"] == [2.0] and "the connection failed" in done["told"][0]
    assert pushed(hub, "me/broken") == (contents(export), ["initial commit", "A model"])
    sent = [one.path for one in hub.asked("PUT /storage/")]
    assert len(sent) == 4 and len(set(sent)) == 3


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, pusher, export):
    hub.faults = [{"match": "/commit/", "drop": "answer"}]
    done = pusher.push(export, "me/lost")
    assert done["slept"] == [2.0]
    assert pushed(hub, "me/lost") == (contents(export), ["initial commit", "A model"])
    assert done["url"].endswith(hub.repos["me/lost"].branches["main"][-1].oid)


def test_an_answer_that_never_comes_is_not_waited_for(hub, pusher, export):
    # The library itself allows the first of these to take for ever.
    hub.faults = [
        {"match": "GET /api/models/me/silent", "drop": "never"},
        {"match": "/commit/", "drop": "never"},
    ]
    done = pusher.push(export, "me/silent", private=True, timeout_s=1.0)
    assert "url" in done
    assert not any(fault["times"] for fault in hub.faults)
    assert len(done["told"]) >= 2 and "ReadTimeout" in done["told"][0]


def test_commits_of_others_are_gone_around(hub, pusher, export):
    hub.faults = [{"match": "/commit/", "status": 409}, {"match": "/commit/", "status": 412}]
    done = pusher.push(export, "me/conflict")
    assert "url" in done and done["slept"] == [2.0, 4.0]
    assert "another change got in between" in done["told"][0]


@pytest.mark.parametrize(
    ("headers", "pauses"),
    [
        ({"Retry-After": "7"}, [7.0, 7.0]),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, [55.0, 55.0]),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, [2.0, 4.0]),
    ],
)
# The library repeats the first of these itself.
@pytest.mark.parametrize("step", ["/preupload/", "/commit/"])
def test_the_pause_that_the_hub_asks_for_is_made(hub, pusher, export, step, headers, pauses):
    hub.faults = [{"match": step, "times": 2, "status": 429, "headers": headers}]
    done = pusher.push(export, "me/busy")
    assert "url" in done and done["slept"] == pauses
    assert f"answered 429; trying again in {pauses[0]:.0f} s" in done["told"][0]


def test_a_pause_beyond_patience_ends_the_push(hub, pusher, export):
    headers = {"Retry-After": "200"}
    hub.faults = [{"match": "/commit/", "times": 99, "status": 429, "headers": headers}]
    done = pusher.push(export, "me/patient")
    assert done["error"] == "RunFailed" and done["slept"] == [200.0], done
    assert "answered 429, asks for a pause of 200 s (attempt 2 of 6)" in done["message"]


@pytest.mark.parametrize("step", ["/create", "/batch", "/commit/"])
def test_trouble_without_end_is_given_up_and_says_how_to_go_on(hub, pusher, export, step):
    before = contents(export)
    hub.faults = [{"match": step, "times": 999, "status": 500}]
    done = pusher.push(export, "me/hopeless")
    assert done["error"] == "RunFailed" and "\n" not in done["message"]
    for part in ("answered 500", "attempt 6 of 6", str(export), "the same command"):
        assert part in done["message"]
    assert done["slept"] == PAUSES and len(done["told"]) == 5
    assert len(hub.asked(step)) == 6, "the library's attempts multiply with ours"
    assert contents(export) == before


def test_a_conflict_that_the_library_repeats_without_end_is_given_up(hub, pusher, export):
    error = "Cannot create repo: another conflicting operation is in progress"
    hub.faults = [{"match": "/create", "times": 999, "status": 409, "error": error}]
    done = pusher.push(export, "me/contended")
    assert done["error"] == "RunFailed" and done["slept"] == PAUSES
    assert len(hub.asked("/create")) == 6


@pytest.mark.parametrize(
    ("match", "status", "error", "parts"),
    [
        ("/create", 401, None, ["401", "HF_TOKEN", "https://huggingface.co/settings/tokens"]),
        ("/commit/", 403, "no rights", ["403", "no rights", "write permission", "HF_TOKEN"]),
        ("PUT /storage/", 403, None, ["403", "HF_TOKEN"]),
        ("/branch/", 404, None, ["no such repository or branch"]),
        ("/commit/", 413, "too large", ["413", "too large"]),
        ("/validate-yaml", 400, None, ["400", "Invalid metadata in README.md"]),
    ],
)
def test_a_refusal_is_one_sentence_and_final(hub, pusher, export, match, status, error, parts):
    fault = {"match": match, "times": 99, "status": status}
    if error:
        fault["error"] = error
    # A token that is refused cannot read the repository. Otherwise the library would take it as
    # created already.
    unreadable = {"match": "GET /api/models/me/refused", "times": 99, "status": 401}
    hub.faults = [fault, unreadable]
    done = pusher.push(export, "me/refused", revision="other")
    assert done["error"] == "UserError" and "\n" not in done["message"], done
    for part in ("me/refused", *parts):
        assert part in done["message"]
    assert done["slept"] == done["told"] == []


def test_a_token_of_someone_else_is_refused(hub, pusher, export):
    done = pusher.push(export, "me/new", token="hf_other")
    assert done["error"] == "UserError" and "401" in done["message"] and done["slept"] == []


@pytest.mark.parametrize("repo_id", ["model", "me/a/b", "me/a--b", "me/a b", "me/x.git"])
def test_a_wrong_name_is_refused_offline(hub, pusher, export, repo_id):
    done = pusher.push(export, repo_id)
    assert done["error"] == "UserError"
    assert "USER/NAME" in done["message"] and repo_id in done["message"]
    assert not hub.requests


@pytest.mark.parametrize("token", [None, "", " \n", "hf_two lines", "hf_two\nlines", "hf_ä"])
def test_without_a_token_nothing_is_asked_and_the_stored_login_is_not_used(
    hub, pusher, export, token
):
    (pusher.log.parent / "hf").mkdir(exist_ok=True)
    (pusher.log.parent / "hf" / "token").write_text("hf_stored")
    done = pusher.push(export, "me/tokenless", token=token)
    assert done["error"] == "UserError"
    assert "HF_TOKEN" in done["message"] and "\n" not in done["message"]
    assert not hub.requests
    assert "two" not in done["message"] and "ä" not in done["message"]
    (pusher.log.parent / "hf" / "token").unlink()


def test_a_wrong_directory_is_refused_offline(hub, pusher, tmp_path):
    done = pusher.push(tmp_path / "absent", "me/a")
    assert done["error"] == "UserError" and "no such directory" in done["message"]
    done = pusher.push(tmp_path, "me/a")
    assert done["error"] == "UserError"
    assert "config.json" in done["message"] and str(tmp_path) in done["message"]
    assert not hub.requests


def test_the_next_process_goes_on_and_the_token_is_seen_nowhere(hub, root, export, tmp_path):
    """A push fails at its end and another process repeats it; every answer holds the token."""
    home = tmp_path / "hf"
    echoes = {
        "times": 99,
        "error": f"Bearer {TOKEN} is bad " * 9,
        "headers": {"X-Error-Message": f"no {TOKEN}"},
    }
    hub.faults = [echoes | {"match": "/commit/", "status": 500}]
    first = Pusher(root, hub.environment(home, HF_DEBUG="1"), tmp_path / "log0")
    done = first.push(export, "me/next", token=f" {TOKEN}\n")
    assert done["error"] == "RunFailed" and len(hub.asked("PUT /storage/")) == 3
    hub.faults = [echoes | {"match": "/preupload/", "status": 403}]
    done = first.push(export, "me/next", token=TOKEN)
    assert done["error"] == "UserError" and "***" in done["message"]
    first.end()

    hub.faults = []
    hub.requests.clear()
    second = Pusher(root, hub.environment(home, HF_DEBUG="1"), tmp_path / "log1")
    done = second.push(export, "me/next", token=f" {TOKEN}\n")
    assert "url" in done
    assert len(hub.asked("/batch")) == 1 and not hub.asked("PUT /storage/")
    second.end()
    assert pushed(hub, "me/next") == (contents(export), ["initial commit", "A model"])

    log = first.log.read_text()
    assert "Traceback" in log and "curl" in log, "the log to search holds everything"
    kept = texts(home) + texts(export)
    assert len(kept) >= 6
    outputs = [*first.output, log, *second.output, second.log.read_text()]
    assert not any(TOKEN[3:] in text for text in [*outputs, *kept])


def texts(directory):
    """Returns the content of all files in a directory."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path.read_text(errors="replace") for path in files]


def test_no_network(hub, root, export, tmp_path):
    unreachable = hub.environment(tmp_path / "hf", HF_ENDPOINT="http://127.0.0.1:9")
    child = Pusher(root, unreachable, tmp_path / "log")
    done = child.push(export, "me/far")
    child.end()
    assert done["error"] == "RunFailed" and "ConnectError" in done["message"]
    assert done["slept"] == PAUSES

    child = Pusher(root, unreachable | {"HF_HUB_OFFLINE": "1"}, tmp_path / "log")
    done = child.push(export, "me/far")
    child.end()
    assert done["error"] == "UserError" and "HF_HUB_OFFLINE" in done["message"]
    assert done["slept"] == []


def test_trouble_of_xet_is_told_apart(hub, root, export, tmp_path):
    """The client of Xet, the Hub's newer storage of large files, repeats requests by itself."""
    pytest.importorskip("hf_xet")
    environment = hub.environment(tmp_path / "hf", HF_XET_CLIENT_RETRY_BASE_DELAY="10ms")
    del environment["HF_HUB_DISABLE_XET"]
    child = Pusher(root, environment, tmp_path / "log")
    step = "/xet-write-token/"
    hub.faults = [{"match": step, "status": 403}]
    done = child.push(export, "me/xet")
    assert done["error"] == "UserError" and done["slept"] == []
    assert "403" in done["message"] and "HF_TOKEN" in done["message"]

    n_before = len(hub.asked(step))
    hub.faults = [{"match": step, "times": 99, "status": 500}]
    done = child.push(export, "me/xet")
    child.end()
    assert done["error"] == "RunFailed" and "answered 500" in done["message"]
    assert done["slept"] == PAUSES
    n_asked = len(hub.asked(step)) - n_before
    assert n_asked == 2 * 6, "the client's attempts multiply with ours"
    assert not any(TOKEN[3:] in text for text in [*child.output, *texts(tmp_path)])
