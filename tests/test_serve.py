"A real server process: prediction, limits, nothing left behind."
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient

from forked import Command, started
from vlmtemporal import gate, serve as serving
from vlmtemporal.api import create_app
from vlmtemporal.basics import BadInput
from vlmtemporal.engine import Engine
from vlmtemporal.guard import GuardedVideo
from vlmtemporal.intake import ServerSettings
from vlmtemporal.loading import load_model
from vlmtemporal.sources import Limits
from vlmtemporal.video import ffmpeg


TESTS = str(Path(__file__).parent)
PATIENCE = 300 # seconds: other tests may be at work on the same cores
BEGUN = b'\0\0\0\x18ftypisom whatever' # begins as a video does


def left(tmp):
    "What lies in a server's folder for temporary files."
    return sorted(p for p in tmp.rglob('*') if p.is_file() and p.name != 'log' and p.suffix != '.lock')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('serve')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    log = open(tmp/'log', 'w') # noqa: SIM115
    command = [*started(), 'serve', '--port', str(port), '--drain-seconds', '60']
    process = Command(command, stdout=log, stderr=log, env={**os.environ, 'TMPDIR': str(tmp)})
    url, deadline = f'http://127.0.0.1:{port}', time.time() + PATIENCE
    while time.time() < deadline:
        try:
            httpx.get(f'{url}/healthz')
            break
        except httpx.TransportError:
            assert process.poll() is None, (tmp/'log').read_text()
            time.sleep(.3)
    else: pytest.fail(f'no answer within {PATIENCE} s: ' + (tmp/'log').read_text())
    before = left(tmp)
    yield url, tmp
    assert left(tmp) == before, 'temporary files stay behind'
    with socket.create_connection(('127.0.0.1', port)) as visitor: # an open page holds nothing up
        visitor.sendall(b'GET /gradio_api/heartbeat/x HTTP/1.1\r\nHost: x\r\n\r\n')
        assert visitor.recv(12) == b'HTTP/1.1 200'
        begin = time.monotonic()
        process.terminate()
        assert process.wait(PATIENCE) == 0, (tmp/'log').read_text()
    assert time.monotonic() - begin < 40, 'the end waits for an open page'
    assert [p.name for p in tmp.iterdir()] == ['log'], 'the server leaves its folder behind'


def post(url, data, start=0.):
    return httpx.post(f'{url}/predict', files={'video': ('clip.mp4', data)}, data={'start': start}, timeout=PATIENCE)


def test_predicts_several_at_once(server, video):
    url, tmp = server
    data = video.read_bytes()
    with ThreadPoolExecutor(6) as pool: answers = list(pool.map(lambda i: post(url, data, 3.*i), range(5)))
    assert all(a.status_code == 200 for a in answers)
    assert len({a.json()['clip_id'] for a in answers}) == 5
    assert httpx.get(f'{url}/healthz', timeout=PATIENCE).status_code == 200


def test_stays_alive_while_the_model_works(video):
    "The model gives its answer only once the health check has been answered."
    engine, busy, answered = Engine('tiny', 'none'), threading.Event(), threading.Event()
    answer = engine.answer
    def held(*args, **kwargs):
        busy.set()
        assert answered.wait(PATIENCE), 'the health check waits for the model: something blocks the event loop'
        return answer(*args, **kwargs)
    engine.answer = held
    with TestClient(create_app(engine)) as client, ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.post, '/predict', files={'video': ('clip.mp4', video.read_bytes())})
        assert busy.wait(PATIENCE) and client.get('/healthz').json()['status'] == 'ok'
        answered.set()
        assert job.result().status_code == 200


def test_bad_uploads(server, video):
    url, tmp = server
    bad = post(url, b''), post(url, b'text'), post(url, video.read_bytes(), 1e5)
    assert [answer.status_code for answer in bad] == [422, 415, 422]
    lacking = httpx.post(f'{url}/predict', timeout=PATIENCE)
    assert lacking.status_code == 422 and lacking.json() == {'detail': 'video: Field required'}


@pytest.mark.parametrize('path', ['/predict', '/gradio_api/upload'])
def test_an_upload_without_an_end_is_stopped(path, server):
    url, tmp = server
    before = left(tmp)
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        for _ in range(260): yield bytes(1 << 20)
    headers = {'Content-Type': 'multipart/form-data; boundary=x'}
    with suppress(httpx.WriteError): # the server hung up on it, which is as good
        answer = httpx.post(url + path, content=endless(), headers=headers, timeout=PATIENCE)
        assert answer.status_code == 413
    while httpx.get(f'{url}/health', timeout=PATIENCE).json()['in_use']: time.sleep(.1)
    assert left(tmp) == before, 'what was sent lies about'
    assert httpx.get(f'{url}/healthz', timeout=PATIENCE).status_code == 200


def test_page_gives_no_file_away(server):
    url, _ = server
    assert 'vlmtemporal' in httpx.get(url, timeout=PATIENCE).text
    file = dict(video=dict(path='/etc/passwd', meta=dict(_type='gradio.FileData')))
    attack = dict(data=[file, 0], event_data=None, fn_index=0, session_hash='x')
    for route in ('/gradio_api/run/predict', '/gradio_api/queue/join'):
        r = httpx.post(url + route, json=attack, timeout=PATIENCE)
        assert 'root:' not in r.text
    file = httpx.get(f'{url}/gradio_api/file=/etc/passwd', timeout=PATIENCE)
    assert file.status_code in (403, 404)


@pytest.fixture(scope='module')
def engine(): return Engine('tiny', 'none')


@pytest.fixture
def client(engine, monkeypatch, tmp_path):
    "The API in this process; its videos may be decoded by what misbehaves."
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [TESTS, os.environ.get('PYTHONPATH')])))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with TestClient(create_app(engine)) as client: yield client


def upload(client, data, name='clip.mp4', start=0.):
    return client.post('/predict', files={'video': (name, data)}, data={'start': start})


@pytest.mark.parametrize('what', ['hangs', 'crashes', 'ends', 'fails', 'grows', 'hoards', 'no_json', 'cut_short'])
def test_whatever_becomes_of_a_posted_file_is_its_own_fault(what, client, video, monkeypatch):
    "The process that decodes it dies, hangs, eats memory or lies: 422 and a sentence, and the next one is answered."
    monkeypatch.setattr('vlmtemporal.engine.UPLOAD_LIMITS', Limits(memory=2**28, time=3))
    with monkeypatch.context() as patch:
        patch.setattr(GuardedVideo, 'decoder', f'misbehaving:{what}')
        answer = upload(client, BEGUN)
    assert answer.status_code == 422 and list(answer.json()) == ['detail']
    said = answer.json()['detail']
    assert said.isprintable() and '/' not in said and 20 < len(said) < 200
    assert client.get('/healthz').status_code == 200
    assert not list(client.app.state.folder.path.iterdir())
    assert not list(Path(tempfile.gettempdir()).glob('vlmtemporal-*'))
    assert upload(client, video.read_bytes()).status_code == 200


def test_what_nobody_thought_of_is_the_files_fault_too(client, monkeypatch):
    def surprise(*args): raise ZeroDivisionError('/secret/path')
    monkeypatch.setattr('vlmtemporal.engine.sample_clip', surprise)
    monkeypatch.setattr(GuardedVideo, 'decoder', 'misbehaving:Grey')
    answer = upload(client, BEGUN)
    assert (answer.status_code, answer.json()) == (422, dict(detail='the video cannot be used (ZeroDivisionError)'))


def test_a_server_that_cannot_decode_now_says_so(client, monkeypatch):
    monkeypatch.setattr(GuardedVideo, 'decoder', 'misbehaving:absent')
    answer = upload(client, BEGUN)
    assert answer.status_code == 503 and 'try again' in answer.json()['detail'] and '/' not in answer.json()['detail']


@pytest.mark.parametrize('name', ['list.m3u8', 'list.txt', 'list.mp4', 'list.sdp', 'list'])
@pytest.mark.parametrize('text', ['#EXTM3U\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n', "ffconcat version 1.0\nfile '{}'\n",
                                  'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n', '{}', 'file://{}'])
def test_a_posted_list_gives_no_other_file_away(name, text, client, video):
    answer = upload(client, text.format(video).encode(), name)
    assert answer.status_code == 415 and 'holds no video' in answer.json()['detail']


@pytest.mark.parametrize('name', ['-i', 'list.m3u8', '../../etc/passwd', 'http:clip.mp4', 'рыба 動画.mp4', 'x'*300,
                                  'a\nb.mp4', 'a%00b'])
def test_a_posted_files_name_says_nothing(name, client, video):
    answer = upload(client, video.read_bytes(), name)
    assert answer.status_code == 200 and answer.json()['clip_id'] == 'upload@0s' and answer.json()['warnings'] == []


@pytest.fixture(scope='module')
def torn(tmp_path_factory):
    "20 s of which a piece in the middle cannot be read."
    path = tmp_path_factory.mktemp('torn')/'torn.ts'
    source = ['-f', 'lavfi', '-i', 'testsrc2=s=320x240:r=25', '-t', '20']
    how = ['-c:v', 'libx264', '-pix_fmt', 'yuv420p', '-g', '25', '-threads', '1']
    subprocess.run([ffmpeg(), '-v', 'error', '-y', *source, *how, str(path)], check=True)
    data = bytearray(path.read_bytes())
    for at in range(len(data)*6//10, len(data)*7//10, 97): data[at] ^= 255
    path.write_bytes(data)
    return path


def test_damage_is_told(torn, client, engine, cli):
    answer = upload(client, torn.read_bytes())
    assert answer.status_code == 200 and answer.json()['warnings'], answer.text
    assert all(w.isprintable() and '/' not in w for w in answer.json()['warnings'])
    code, out, err = cli('predict', torn, '--adapter', 'none', '--trusted', 'no', '--json')
    assert code == 0 and json.loads(out)['warnings'] == answer.json()['warnings'] and 'warning: ' in err
    code, out, err = cli('sample', torn, '--json')
    assert code == 0 and json.loads(out)['warnings'] == answer.json()['warnings']
    assert engine.analyze(torn, stride=5, trusted=False).warnings == tuple(answer.json()['warnings'])


def test_the_operations_can_be_said(monkeypatch):
    "`serve --taxonomy` gets to the engine; without it the engine gets none, and takes the adapter's."
    from typer.testing import CliRunner

    import vlmtemporal.serve as module
    from vlmtemporal.cli import app
    asked = []
    class Asked:
        def __init__(self, *args, **options):
            asked.append(options.get('taxonomy'))
            raise BadInput('enough')
    monkeypatch.setattr(module, 'Engine', Asked)
    for more in ({}, dict(taxonomy='openpack')):
        with pytest.raises(BadInput): module.create_server(**more)
    monkeypatch.setattr(module, 'serve', lambda *args, taxonomy, **options: asked.append(taxonomy))
    assert CliRunner().invoke(app, ['serve', '--taxonomy', 'openpack']).exit_code == 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CliRunner().invoke(app, ['serve'], env=dict(VLMTEMPORAL_SERVE_TAXONOMY='work.yaml'))
    assert asked == [None, 'openpack', 'openpack', 'work.yaml']


def test_a_terminal_is_told_that_a_model_loads(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    for kind, said in ((Terminal, '\rloading tiny ...\r\033[K'), (io.StringIO, '')):
        monkeypatch.setattr(sys, 'stderr', stderr := kind())
        load_model('tiny')
        assert said in stderr.getvalue() and ('loading' in said or not stderr.getvalue())


@contextmanager
def own_server(tmp, *options):
    "A server with the small model, of this test alone: (process, url)."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    url, deadline = f'http://127.0.0.1:{port}', time.monotonic() + PATIENCE
    with open(tmp/'log', 'w') as log:
        process = Command([*started(), 'serve', '--port', str(port), *options], stdout=log, stderr=log,
                          env={**os.environ, 'TMPDIR': str(tmp)})
    try:
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                httpx.get(f'{url}/readyz')
                break
            assert process.poll() is None, (tmp/'log').read_text()
            time.sleep(.2)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize('signals', [[signal.SIGTERM], [signal.SIGINT]*2], ids=['told once', 'told twice'])
def test_told_to_end_while_it_reads_videos_a_server_ends_quietly(video, tmp_path, signals):
    "One is followed as events, one is a job, one was left by its client; the threads that decode and answer end first."
    with own_server(tmp_path, '--drain-seconds', '3') as (process, url):
        def ask(timeout=PATIENCE, **headers):
            return httpx.stream('POST', f'{url}/analyze', files=dict(video=video.read_bytes()), headers=headers,
                                timeout=timeout)
        with ask(Prefer='respond-async') as answer: assert answer.status_code == 202
        with suppress(httpx.ReadTimeout), ask(timeout=.5): pytest.fail('it was answered')
        with ask(Accept='text/event-stream') as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith('data'): pass
            for number in signals:
                process.send_signal(number)
                time.sleep(.3)
            *_, last = filter(None, lines)
        assert json.loads(last.removeprefix('data: '))['status'] == 503
        assert process.wait(PATIENCE) == 0
    said = (tmp_path/'log').read_text()
    assert 'Traceback' not in said and 'terminate' not in said, said
    assert not left(tmp_path)


def test_told_to_end_while_it_loads_a_server_ends(monkeypatch):
    "Also where the exit is lost, as Python loses what is raised in a `__del__`."
    def loads(*_, **__):
        with suppress(SystemExit): os.kill(os.getpid(), signal.SIGTERM)
        return SimpleNamespace(state=SimpleNamespace(engine=SimpleNamespace(warm_up=lambda: None)))
    monkeypatch.setattr(serving, 'create_server', loads)
    monkeypatch.setattr(gate, 'Server', lambda *_: pytest.fail('it began to serve'))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit): serving.serve(settings=ServerSettings(port=0))
    assert signal.getsignal(signal.SIGTERM) == before
