"A real server process: prediction, limits, nothing left behind."
import os, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from vlmtemporal.api import create_app
from vlmtemporal.engine import Engine


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('serve')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    log = open(tmp/'log', 'w')
    process = subprocess.Popen([str(Path(sys.executable).parent/'vlmtemporal'), 'serve', '--port', str(port)], stdout=log, stderr=log, env={**os.environ, 'TMPDIR': str(tmp)})
    url, deadline = f'http://127.0.0.1:{port}', time.time() + 120
    while time.time() < deadline:
        try: httpx.get(f'{url}/healthz'); break
        except httpx.TransportError:
            assert process.poll() is None, (tmp/'log').read_text()
            time.sleep(.3)
    yield url, tmp
    process.terminate(); process.wait(20)


def post(url, data, start=0.):
    return httpx.post(f'{url}/predict', files={'video': ('clip.mp4', data)}, data={'start': start}, timeout=300)


def test_predicts_several_at_once(server, video):
    url, tmp = server; data = video.read_bytes()
    with ThreadPoolExecutor(6) as pool: answers = list(pool.map(lambda i: post(url, data, 3.*i), range(5)))
    assert all(a.status_code == 200 for a in answers) and len({a.json()['clip_id'] for a in answers}) == 5
    assert httpx.get(f'{url}/healthz', timeout=30).status_code == 200
    assert not list(tmp.glob('vlmtemporal-*')), 'temporary files stay behind'


def test_stays_alive_while_the_model_works(video):
    "The model gives its answer only once the health check has been answered."
    engine, busy, answered = Engine('twin', 'none'), threading.Event(), threading.Event(); predict = engine.predict
    def held(*args):
        busy.set(); assert answered.wait(60), 'the health check waits for the model: something blocks the event loop'
        return predict(*args)
    engine.predict = held
    with TestClient(create_app(engine)) as client, ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.post, '/predict', files={'video': ('clip.mp4', video.read_bytes())})
        assert busy.wait(60) and client.get('/healthz').json()['status'] == 'ok'
        answered.set(); assert job.result().status_code == 200


def test_bad_uploads(server, video):
    url, tmp = server
    assert [post(url, d).status_code for d in (b'', b'text')] == [400, 400] and post(url, video.read_bytes(), 1e5).status_code == 400
    assert httpx.post(f'{url}/predict').status_code == 422 and not list(tmp.glob('vlmtemporal-*'))


def test_an_upload_without_an_end_is_stopped(server):
    url, _ = server
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        for _ in range(260): yield bytes(1 << 20)
    try: assert httpx.post(f'{url}/predict', content=endless(), headers={'Content-Type': 'multipart/form-data; boundary=x'}, timeout=120).status_code == 413
    except httpx.WriteError: pass # the server hung up on it, which is as good
    assert httpx.get(f'{url}/healthz').status_code == 200


def test_page_gives_no_file_away(server):
    url, _ = server
    assert 'vlmtemporal' in httpx.get(url).text
    attack = dict(data=[dict(video=dict(path='/etc/passwd', meta=dict(_type='gradio.FileData'))), 0], event_data=None, fn_index=0, session_hash='x')
    for route in ('/gradio_api/run/predict', '/gradio_api/queue/join'):
        r = httpx.post(url + route, json=attack); assert 'root:' not in r.text
    assert httpx.get(f'{url}/gradio_api/file=/etc/passwd').status_code in (403, 404)
