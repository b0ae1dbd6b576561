"A real server process: prediction, limits, nothing left behind."
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from vlmtemporal.api import create_app
from vlmtemporal.engine import Engine


PATIENCE = 300 # seconds: other tests may be at work on the same cores


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('serve')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    log = open(tmp/'log', 'w') # noqa: SIM115
    command = [str(Path(sys.executable).parent/'vlmtemporal'), 'serve', '--port', str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, 'TMPDIR': str(tmp)})
    url, deadline = f'http://127.0.0.1:{port}', time.time() + PATIENCE
    while time.time() < deadline:
        try:
            httpx.get(f'{url}/healthz')
            break
        except httpx.TransportError:
            assert process.poll() is None, (tmp/'log').read_text()
            time.sleep(.3)
    else: pytest.fail(f'no answer within {PATIENCE} s: ' + (tmp/'log').read_text())
    yield url, tmp
    process.terminate()
    process.wait(PATIENCE)


def post(url, data, start=0.):
    return httpx.post(f'{url}/predict', files={'video': ('clip.mp4', data)}, data={'start': start}, timeout=PATIENCE)


def test_predicts_several_at_once(server, video):
    url, tmp = server
    data = video.read_bytes()
    with ThreadPoolExecutor(6) as pool: answers = list(pool.map(lambda i: post(url, data, 3.*i), range(5)))
    assert all(a.status_code == 200 for a in answers)
    assert len({a.json()['clip_id'] for a in answers}) == 5
    assert httpx.get(f'{url}/healthz', timeout=PATIENCE).status_code == 200
    assert not list(tmp.glob('vlmtemporal-*')), 'temporary files stay behind'


def test_stays_alive_while_the_model_works(video):
    "The model gives its answer only once the health check has been answered."
    engine, busy, answered = Engine('tiny', 'none'), threading.Event(), threading.Event()
    predict = engine.predict
    def held(*args):
        busy.set()
        assert answered.wait(PATIENCE), 'the health check waits for the model: something blocks the event loop'
        return predict(*args)
    engine.predict = held
    with TestClient(create_app(engine)) as client, ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.post, '/predict', files={'video': ('clip.mp4', video.read_bytes())})
        assert busy.wait(PATIENCE) and client.get('/healthz').json()['status'] == 'ok'
        answered.set()
        assert job.result().status_code == 200


def test_bad_uploads(server, video):
    url, tmp = server
    bad = post(url, b''), post(url, b'text'), post(url, video.read_bytes(), 1e5)
    assert [answer.status_code for answer in bad] == [400, 400, 400]
    assert httpx.post(f'{url}/predict', timeout=PATIENCE).status_code == 422
    assert not list(tmp.glob('vlmtemporal-*'))


def test_an_upload_without_an_end_is_stopped(server):
    url, _ = server
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        for _ in range(260): yield bytes(1 << 20)
    headers = {'Content-Type': 'multipart/form-data; boundary=x'}
    with suppress(httpx.WriteError): # the server hung up on it, which is as good
        answer = httpx.post(f'{url}/predict', content=endless(), headers=headers, timeout=PATIENCE)
        assert answer.status_code == 413
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


def test_what_the_page_shows_is_what_the_model_saw(video, monkeypatch):
    "One choice of frames, by the engine's recipe, for the gallery and for the answer."
    import numpy as np
    from vlmtemporal import engine as module
    from vlmtemporal.app import show
    from vlmtemporal.frames import FrameSpec
    spec = FrameSpec('uniform', 3, size=(112, 112), roi=(0, 0, .5, 1), context_seconds=1.)
    engine, asked = Engine('tiny', 'none', spec=spec), []
    constrained = module.DECODERS['constrained']
    def listen(loaded, examples, taxonomy, **options):
        asked.extend(examples)
        return constrained(loaded, examples, taxonomy, **options)
    monkeypatch.setitem(module.DECODERS, 'constrained', listen)
    _, shown, _ = show(engine, str(video), 20.)
    engine.predict(video, 20.)
    chosen = engine.sample(video, 20.)
    assert chosen.spec == spec and len(chosen.indices) == len(shown) == 5 and (chosen.indices < 0).sum() == 2
    for example in asked:
        assert np.array_equal(example.indices, chosen.indices) and np.array_equal(example.frames, chosen.frames)
    assert all(np.array_equal(frame, true) for (frame, _), true in zip(shown, chosen.frames))
    assert [caption.split()[1] for _, caption in shown] == [str(i) for i in chosen.indices]
