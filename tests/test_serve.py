"A real server process: prediction, limits, nothing left behind."
import os, socket, statistics, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest


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


def test_predicts_and_stays_alive_meanwhile(server, video):
    url, tmp = server; data = video.read_bytes()
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(post, url, data, 3.*i) for i in range(5)]
        waits = []
        while not all(j.done() for j in jobs):
            begin = time.time(); assert httpx.get(f'{url}/healthz', timeout=30).status_code == 200
            waits.append(time.time() - begin); time.sleep(.05)
    answers = [j.result() for j in jobs]
    assert all(a.status_code == 200 for a in answers) and len({a.json()['clip_id'] for a in answers}) == 5
    busy = statistics.median(a.json()['latency_ms'] for a in answers)/1000
    assert statistics.median(waits) < busy/2, 'the health check waits for the model: something blocks the event loop'
    assert not list(tmp.glob('vlmtemporal-*')), 'temporary files stay behind'


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
