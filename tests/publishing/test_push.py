"""Pushing against a Hub on this machine, in child processes: huggingface_hub reads its environment when it is imported."""

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

def answer(directory=None, repo_id=None, token=None, download=None, timeout_s=60.0, **options):
    if download:
        from huggingface_hub import snapshot_download
        return {"path": snapshot_download(download, **options)}
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    told = []
    slept.clear()
    pushing._TIMEOUT_S = (timeout_s,) * 4
    try:
        result = {"url": pushing.push(pathlib.Path(directory), repo_id, tell=told.append, **options)}
    except (RunFailed, UserError) as error:
        traceback.print_exc()  # as of a caller who hides nothing
        result = {"error": type(error).__name__, "message": str(error)}
    client = get_session()
    assert "request" not in vars(client), "the request of the push is left behind"
    assert client.timeout == timeout, "the timeout of the push is left behind"
    return {"told": told, "slept": slept, **result}

for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)
"""


class Pusher:
    """A child process that pushes, one call after the other, without ever sleeping."""

    def __init__(self, root, environment, log):
        self.log, self.output = log, []
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
    """No trouble left over from another test, and only one's own requests."""
    hub.faults.clear()
    hub.requests.clear()


@pytest.fixture
def export(tmp_path):
    """Two files of weights and a picture, which are large files that no other test has sent, and what else belongs to a model."""
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
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def pushed(hub, repo_id, branch="main"):
    """The files of the last commit, without the one that the Hub made, and the messages of all commits."""
    commits = hub.repos[repo_id].branches[branch]
    files = {
        name: file.content for name, file in commits[-1].files.items() if name != ".gitattributes"
    }
    return files, [commit.summary for commit in commits]


def test_a_new_repository_gets_all_files_in_one_commit(hub, pusher, export):
    expected = contents(export)
    (export / ".cache").mkdir()
    (export / ".cache" / "left").write_text("by a download")
    done = pusher.push(export, "me/new", private=True)
    assert done["told"] == done["slept"] == []
    assert pushed(hub, "me/new") == (expected, ["initial commit", "A model"])
    assert done["url"] == f"{hub.url}/me/new/commit/{hub.repos['me/new'].branches['main'][-1].oid}"
    assert hub.repos["me/new"].private
    assert len(hub.asked("PUT /storage/")) == 3 and not any(
        one.authorization for one in hub.asked("PUT /storage/")
    )
    assert all(one.authorization == f"Bearer {TOKEN}" for one in hub.asked("POST"))


def test_what_was_pushed_can_be_downloaded(hub, pusher, export):
    pusher.push(export, "me/there", revision="step/100")
    got = pusher.ask(download="me/there", revision="step/100")
    assert contents(pathlib.Path(got["path"])) == contents(export) | pushed_attributes(
        hub, "me/there"
    )


def pushed_attributes(hub, repo_id):
    return {
        ".gitattributes": hub.repos[repo_id].branches["main"][0].files[".gitattributes"].content
    }


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
    assert [
        f"me/public: exists and stays public; make it private under {hub.url}/me/public/settings"
    ] == [line for line in done["told"] if "trying again" not in line]


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
    assert (
        len(done["told"]) == len(done["slept"])
        and "trying again in 2 s (attempt 2 of 6)" in done["told"][0]
    )


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
    # Of the first of these the library itself sets that it may take for ever.
    hub.faults = [
        {"match": "GET /api/models/me/silent", "drop": "never"},
        {"match": "/commit/", "drop": "never"},
    ]
    done = pusher.push(export, "me/silent", private=True, timeout_s=1.0)
    assert "url" in done and not any(fault["times"] for fault in hub.faults)
    assert len(done["told"]) >= 2 and "ReadTimeout" in done["told"][0]


def test_commits_of_others_are_gone_around(hub, pusher, export):
    hub.faults = [{"match": "/commit/", "status": 409}, {"match": "/commit/", "status": 412}]
    done = pusher.push(export, "me/conflict")
    assert (
        "url" in done
        and done["slept"] == [2.0, 4.0]
        and "another change got in between" in done["told"][0]
    )


@pytest.mark.parametrize(
    "headers, pauses",
    [
        ({"Retry-After": "7"}, [7.0, 7.0]),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, [55.0, 55.0]),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, [2.0, 4.0]),
    ],
)
@pytest.mark.parametrize(
    "step", ["/preupload/", "/commit/"]
)  # the library repeats the first of these itself
def test_the_pause_that_the_hub_asks_for_is_made(hub, pusher, export, step, headers, pauses):
    hub.faults = [{"match": step, "times": 2, "status": 429, "headers": headers}]
    done = pusher.push(export, "me/busy")
    assert "url" in done and done["slept"] == pauses
    assert f"answered 429; trying again in {pauses[0]:.0f} s" in done["told"][0]


def test_a_pause_beyond_patience_ends_the_push(hub, pusher, export):
    hub.faults = [
        {"match": "/commit/", "times": 99, "status": 429, "headers": {"Retry-After": "200"}}
    ]
    done = pusher.push(export, "me/patient")
    assert done["error"] == "RunFailed" and done["slept"] == [200.0], done
    assert "answered 429, asks for a pause of 200 s (attempt 2 of 6)" in done["message"]


@pytest.mark.parametrize("step", ["/create", "/batch", "/commit/"])
def test_trouble_without_end_is_given_up_and_says_how_to_go_on(hub, pusher, export, step):
    before = contents(export)
    hub.faults = [{"match": step, "times": 999, "status": 500}]
    done = pusher.push(export, "me/hopeless")
    assert done["error"] == "RunFailed" and "\n" not in done["message"]
    assert all(
        part in done["message"]
        for part in ("answered 500", "attempt 6 of 6", str(export), "the same command")
    )
    assert done["slept"] == PAUSES and len(done["told"]) == 5
    assert len(hub.asked(step)) == 6, "the library's attempts multiply with ours"
    assert contents(export) == before


def test_a_conflict_that_the_library_repeats_without_end_is_given_up(hub, pusher, export):
    error = "Cannot create repo: another conflicting operation is in progress"
    hub.faults = [{"match": "/create", "times": 999, "status": 409, "error": error}]
    done = pusher.push(export, "me/contended")
    assert (
        done["error"] == "RunFailed" and done["slept"] == PAUSES and len(hub.asked("/create")) == 6
    )


@pytest.mark.parametrize(
    "fault, parts",
    [
        ({"match": "/create", "status": 401}, ["401", "HF_TOKEN", "https://huggingface.co/settings/tokens"]),
        ({"match": "/commit/", "status": 403, "error": "no rights"}, ["403", "no rights", "write permission", "HF_TOKEN"]),
        ({"match": "PUT /storage/", "status": 403}, ["403", "HF_TOKEN"]),
        ({"match": "/branch/", "status": 404}, ["no such repository or branch"]),
        ({"match": "/commit/", "status": 413, "error": "too large"}, ["413", "too large"]),
        ({"match": "/validate-yaml", "status": 400}, ["400", "Invalid metadata in README.md"]),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_final(hub, pusher, export, fault, parts):
    # The repository cannot be read by a token that is refused, or creating it would pass as done already.
    hub.faults = [
        fault | {"times": 99},
        {"match": "GET /api/models/me/refused", "times": 99, "status": 401},
    ]
    done = pusher.push(export, "me/refused", revision="other")
    assert done["error"] == "UserError" and "\n" not in done["message"], done
    assert all(part in done["message"] for part in ["me/refused", *parts]), done["message"]
    assert done["slept"] == done["told"] == []


def test_a_token_of_someone_else_is_refused(hub, pusher, export):
    done = pusher.push(export, "me/new", token="hf_other")
    assert done["error"] == "UserError" and "401" in done["message"] and done["slept"] == []


@pytest.mark.parametrize(
    "repo_id, part",
    [("model", "USER/NAME"), ("me/a/b", "USER/NAME"), ("me/a--b", "USER/NAME"), ("me/a b", "USER/NAME"), ("me/x.git", "USER/NAME")],
)  # fmt: skip
def test_a_wrong_name_is_refused_offline(hub, pusher, export, repo_id, part):
    done = pusher.push(export, repo_id)
    assert done["error"] == "UserError" and part in done["message"] and repo_id in done["message"]
    assert not hub.requests


@pytest.mark.parametrize("token", [None, "", " \n", "hf_two lines", "hf_two\nlines", "hf_ä"])
def test_without_a_token_nothing_is_asked_and_the_stored_login_is_not_used(
    hub, pusher, export, token
):
    (pusher.log.parent / "hf").mkdir(exist_ok=True)
    (pusher.log.parent / "hf" / "token").write_text("hf_stored")
    done = pusher.push(export, "me/tokenless", token=token)
    assert (
        done["error"] == "UserError"
        and "HF_TOKEN" in done["message"]
        and "\n" not in done["message"]
    )
    assert not hub.requests and "two" not in done["message"] and "ä" not in done["message"]
    (pusher.log.parent / "hf" / "token").unlink()


def test_a_wrong_directory_is_refused_offline(hub, pusher, tmp_path):
    done = pusher.push(tmp_path / "absent", "me/a")
    assert done["error"] == "UserError" and "no such directory" in done["message"]
    done = pusher.push(tmp_path, "me/a")
    assert (
        done["error"] == "UserError"
        and "config.json" in done["message"]
        and str(tmp_path) in done["message"]
    )
    assert not hub.requests


def test_the_next_process_goes_on_and_the_token_is_seen_nowhere(hub, root, export, tmp_path):
    """A push that fails at the end, its messages full of the token, and its repetition by another process."""
    outputs, home = [], tmp_path / "hf"
    echoes = {
        "times": 99,
        "error": f"Bearer {TOKEN} is bad " * 9,
        "headers": {"X-Error-Message": f"no {TOKEN}"},
    }
    for number in range(2):
        hub.faults = [echoes | {"match": "/commit/", "status": 500}] if number == 0 else []
        hub.requests.clear()
        child = Pusher(root, hub.environment(home, HF_DEBUG="1"), tmp_path / f"log{number}")
        done = child.push(export, "me/next", token=f" {TOKEN}\n")
        if number == 0:
            assert done["error"] == "RunFailed" and len(hub.asked("PUT /storage/")) == 3
            hub.faults = [echoes | {"match": "/preupload/", "status": 403}]
            done = child.push(export, "me/next")
            assert done["error"] == "UserError" and "***" in done["message"]
        else:
            assert (
                "url" in done and len(hub.asked("/batch")) == 1 and not hub.asked("PUT /storage/")
            )
        child.end()
        outputs += [*child.output, child.log.read_text()]
    assert pushed(hub, "me/next") == (contents(export), ["initial commit", "A model"])
    assert "Traceback" in outputs[2] and "curl" in outputs[2], (
        "what is searched must be all that is said"
    )
    kept = [
        path.read_text(errors="replace")
        for path in (*home.rglob("*"), *export.rglob("*"))
        if path.is_file()
    ]
    assert len(kept) >= 6 and not any(TOKEN[3:] in text for text in [*outputs, *kept])


def test_no_network(hub, root, export, tmp_path):
    unreachable = hub.environment(tmp_path / "hf", HF_ENDPOINT="http://127.0.0.1:9")
    child = Pusher(root, unreachable, tmp_path / "log")
    done = child.push(export, "me/far")
    child.end()
    assert (
        done["error"] == "RunFailed"
        and "ConnectError" in done["message"]
        and done["slept"] == PAUSES
    )
    child = Pusher(root, unreachable | {"HF_HUB_OFFLINE": "1"}, tmp_path / "log")
    done = child.push(export, "me/far")
    child.end()
    assert (
        done["error"] == "UserError" and "HF_HUB_OFFLINE" in done["message"] and done["slept"] == []
    )


def test_trouble_of_xet_is_told_apart(hub, root, export, tmp_path):
    """The Hub's newer storage of large files, whose client makes its requests and attempts by itself."""
    pytest.importorskip("hf_xet")
    environment = hub.environment(tmp_path / "hf", HF_XET_CLIENT_RETRY_BASE_DELAY="10ms")
    del environment["HF_HUB_DISABLE_XET"]
    child = Pusher(root, environment, tmp_path / "log")
    hub.faults = [{"match": "/xet-write-token/", "status": 403}]
    done = child.push(export, "me/xet")
    assert (
        done["error"] == "UserError" and "403" in done["message"] and "HF_TOKEN" in done["message"]
    )
    assert done["slept"] == []
    hub.faults, before = (
        [{"match": "/xet-write-token/", "times": 99, "status": 500}],
        len(hub.asked("/xet-write-token/")),
    )
    done = child.push(export, "me/xet")
    child.end()
    assert (
        done["error"] == "RunFailed"
        and "answered 500" in done["message"]
        and done["slept"] == PAUSES
    )
    assert len(hub.asked("/xet-write-token/")) - before == 2 * 6, (
        "the client's attempts multiply with ours"
    )
    said = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN[3:] in text for text in [*child.output, *said])
