"What a stranger found who tried to break the server."
import os
import socket
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette

from vlmtemporal import intake
from vlmtemporal.api import create_app
from vlmtemporal.app import mount
from vlmtemporal.batching import Busy
from vlmtemporal.engine import Engine
from vlmtemporal.gate import Bounded, Server, Visitors, uvicorn_config
from vlmtemporal.intake import ServerFolder, ServerSettings, sweep
from vlmtemporal.jobs import Jobs
from vlmtemporal.serve import _bound


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    folder = ServerFolder(tmp_path_factory.mktemp('gate'))
    engine = Engine('tiny')
    with TestClient(mount(create_app(engine, folder=folder), engine), raise_server_exceptions=False) as client:
        yield client
    folder.close()


@pytest.mark.parametrize(('path', 'body'), [
    ('queue/join', dict(data=[], fn_index=99, session_hash='q')), ('queue/join', dict(data=[], fn_index=-1)),
    ('run/clip', dict(data=[None, None])), ('run/0', dict(data=[None, None])), ('run/take', dict(data=[])),
    ('call/v2/clip', {}), ('call/clip', dict(data=[None])), ('call/video', dict(data='x'))])
def test_what_the_page_cannot_use_is_no_mistake_of_the_server(client, path, body):
    assert client.post(f'/gradio_api/{path}', json=body).status_code < 500


@pytest.mark.parametrize('path', ['queue/join', 'run/clip', 'api/clip', 'cancel', 'reset'])
def test_a_number_that_is_none_is_no_mistake_of_the_server(client, path):
    answer = client.post(f'/gradio_api/{path}', content='{"data": [1e999], "event_id": 1e999}',
                         headers={'Content-Type': 'application/json'})
    assert answer.status_code < 500


def test_an_upload_without_a_name_is_no_mistake_of_the_server(client):
    body = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\ntext\r\n--x--\r\n'
    kind = {'Content-Type': 'multipart/form-data; boundary=x'}
    answer = client.post('/gradio_api/upload', content=body, headers=kind)
    assert answer.status_code < 500


@pytest.mark.parametrize('what', ['fifo', 'link', 'folder'])
def test_what_others_put_beside_our_locks_is_left_alone(what, tmp_path):
    victim, lock = tmp_path/'victim', tmp_path/'vlmtemporal_serve_x.lock'
    victim.write_text('precious')
    if what == 'fifo': os.mkfifo(lock)
    elif what == 'link': lock.symlink_to(victim)
    else: lock.mkdir()
    sweep(tmp_path)
    with_server = ServerFolder(tmp_path)
    with_server.close()
    assert victim.read_text() == 'precious' and os.path.lexists(lock)


def test_who_reads_nothing_is_hung_up_on():
    settings, aborted = ServerSettings(idle_seconds=10), []
    server = Server(uvicorn_config(None, settings), settings, None, lambda: None)
    class Connection:
        def __init__(self, name, sizes): self.transport, self.name, self.sizes = self, name, iter(sizes)
        def get_write_buffer_size(self): return next(self.sizes)
        def abort(self): aborted.append(self.name)
    some = Connection('stuck', [9]*9), Connection('slow', range(90, 0, -1)), Connection('idle', [0]*9)
    server.server_state = SimpleNamespace(connections=set(some))
    for now in (0, 4, 8, 12): server.close_stuck(now)
    assert aborted == ['stuck']


def test_a_job_without_a_thread_gives_everything_back(monkeypatch):
    from contextlib import ExitStack
    import threading
    jobs, held, back = Jobs(1, 60), ExitStack(), []
    held.callback(back.append, 1)
    def fails(self): raise RuntimeError("can't start new thread")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', fails)
        with pytest.raises(Busy): jobs.start(lambda job: {}, held, lambda: None)
    assert back == [1] and not jobs.all


def test_answers_do_not_wait_for_an_acknowledgement():
    "asyncio switches Nagle's delay, 40 ms an answer, off on sockets that say they are TCP."
    with _bound(ServerSettings(port=0)) as taken: assert taken.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize('own', [False, True])
def test_only_a_process_of_its_own_ends_with_the_server(own):
    "A server in a notebook's thread must not take the notebook along."
    settings = ServerSettings(port=0, drain_seconds=.1, log='none')
    fallen, visitors = threading.Event(), Visitors()
    app = Bounded(Starlette(), settings, visitors)
    server = Server(uvicorn_config(app, settings), settings, visitors, lambda: None, fallen.set if own else None)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started: time.sleep(.02)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive() and fallen.wait(4 if own else 3) is own


def test_uploads_are_noted_once_by_whoever_asks(monkeypatch):
    "A notebook has its own copy of the page's functions; the newest notes, and none warns."
    route_utils = pytest.importorskip('gradio').route_utils
    monkeypatch.setattr(route_utils, 'NamedTemporaryFile', tempfile.NamedTemporaryFile)
    intake.note_uploads()
    with monkeypatch.context() as copy:
        copy.setattr(intake, '_NAMED', type(intake._NAMED)('another', default=None))
        intake.note_uploads()
        with intake.unfinished_removed(): begun = route_utils.NamedTemporaryFile(delete=False)
        begun.close()
        assert not os.path.exists(begun.name)
