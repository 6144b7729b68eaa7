"""The live page: bound to the loopback address, read-only, up to date, and gone with Ctrl-C."""

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest

from cramjax.errors import UserError
from cramjax.reporting import server
from tests.reporting import workdirs
from tools import report


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """Pages of tests are made again at once."""
    monkeypatch.setattr(server, "REST", 0.0)


@contextlib.contextmanager
def serving(*paths):
    """Serves the page of `paths`; gives a function that asks for a place of it."""
    with server.open_server(paths, port=0) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        host, port = served.server_address[:2]
        assert host == "127.0.0.1"

        def ask(place="/", method="GET", **headers):
            connection = http.client.HTTPConnection(host, port, timeout=10)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, place, headers=named)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer, content

        ask.address = f"http://{host}:{port}/"
        try:
            yield ask
        finally:
            served.shutdown()
            thread.join()


def test_the_page_and_its_data_are_served_and_nothing_else(tmp_path):
    workdir = workdirs.run(tmp_path)
    with serving(workdir) as ask:
        answer, content = ask()
        assert answer.status == 200 and b"connect-src 'self'" in content
        answer, content = ask("/data.json")
        assert answer.status == 200 and json.loads(content)["follow_s"] == server.FOLLOW_S
        for place in ("/config.json", "/../config.json", "//etc/passwd", "/run/", "/data.json/x"):
            assert ask(place)[0].status == 404
        for method in ("POST", "PUT", "DELETE", "HEAD"):
            assert ask(method=method)[0].status == 501


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil:1", ""])
def test_another_site_that_points_its_name_here_gets_nothing(tmp_path, host):
    with serving(workdirs.run(tmp_path)) as ask:
        answer, content = ask("/data.json", Host=host)
        assert answer.status == 403 and b"step" not in content
        assert ask("/data.json", Host="localhost:99")[0].status == 200


def test_the_data_follow_the_files_and_do_not_come_twice(tmp_path):
    workdir = workdirs.run(tmp_path, lines=workdirs.metrics(10), is_finished=False)
    with serving(workdir) as ask:
        answer, content = ask("/data.json")
        tag = answer.headers["ETag"]
        assert ask("/data.json", If_None_Match=tag)[0].status == 304

        # A line is written in two parts.
        line = json.dumps(workdirs.metrics(11)[-1] | {"eval_loss": 1.25})
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(line[:20])
            file.flush()
            answer, content = ask("/data.json", If_None_Match=tag)
            assert answer.status == 200 and b"1.25" not in content
            file.write(line[20:] + "\n")
            file.flush()
            _, content = ask("/data.json", If_None_Match=answer.headers["ETag"])
        assert "held-out documents is 1.250 nats" in json.loads(content)["sections"][0]["intro"]


def test_a_page_that_takes_long_is_made_seldom_and_its_last_state_is_shown(tmp_path, monkeypatch):
    workdir = workdirs.run(tmp_path, lines=workdirs.metrics(10), is_finished=False)
    clock = [1000.0]
    make = server.page.make
    monkeypatch.setattr(server, "REST", 10.0)
    monkeypatch.setattr(server.time, "monotonic", lambda: clock[0])

    def slow(*args, **options):
        clock[0] += 2.0
        return make(*args, **options)

    monkeypatch.setattr(server.page, "make", slow)
    source = server.Source([workdir], None)
    content, tag = source.data()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(workdirs.metrics(11)[-1] | {"eval_loss": 1.25}) + "\n")
    clock[0] += 19.0
    assert source.data() == (content, tag)
    clock[0] += 1.0
    newer, its_tag = source.data()
    assert its_tag != tag and b"held-out documents is 1.250 nats" in newer
    # Nothing has changed, so nothing is made.
    clock[0] += 100.0
    before = clock[0]
    assert source.data() == (newer, its_tag) and clock[0] == before


def test_a_folder_that_is_away_for_a_moment_is_borne(tmp_path):
    workdir = workdirs.run(tmp_path)
    with serving(workdir) as ask:
        before = ask("/data.json")[1]
        workdir.rename(tmp_path / "away")
        assert ask("/data.json")[0].status == 200
        (tmp_path / "away").rename(workdir)
        assert json.loads(ask("/data.json")[1])["sections"] == json.loads(before)["sections"]


def test_a_browser_that_goes_away_is_no_error(tmp_path, capfd):
    with serving(workdirs.run(tmp_path)) as ask:
        host, port = ask.address.removeprefix("http://").rstrip("/").split(":")
        for question in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\xff\r\n"):
            with socket.create_connection((host, int(port))) as connection:
                # Closed with an error, as when a process is killed.
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(question)
        assert ask()[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_serving_writes_nothing_and_leaves_the_lock_alone(tmp_path):
    workdir = workdirs.run(tmp_path)
    (workdir / "lock").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in [workdir, *workdir.iterdir()]}
    with serving(workdir) as ask:
        ask()
        ask("/data.json")
    assert {path: path.stat().st_mtime_ns for path in [workdir, *workdir.iterdir()]} == before


@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_a_wrong_port_is_a_sentence(tmp_path, capsys, port):
    with contextlib.suppress(SystemExit):
        assert report.main([str(workdirs.run(tmp_path)), f"--serve={port}"]) == 2
    assert "--serve" in capsys.readouterr().err


def test_a_port_in_use_is_a_sentence(tmp_path):
    workdir = workdirs.run(tmp_path)
    with server.open_server([workdir], port=0) as first:
        with pytest.raises(UserError, match="give another port"):
            server.open_server([workdir], port=first.server_address[1])


def test_ctrl_c_ends_the_command_with_its_code(tmp_path, root):
    workdir = workdirs.run(tmp_path)
    command = [sys.executable, "-m", "tools.report", str(workdir), "--serve", "0"]
    child = subprocess.Popen(command, cwd=root, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert "http://127.0.0.1:" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == 130
    assert "Traceback" not in child.stderr.read()
    child.stderr.close()
