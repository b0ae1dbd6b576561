"A real server process: prediction, limits, nothing left behind."
import json
import os
import socket
import subprocess
import sys
import tempfile
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
from vlmtemporal.guard import GuardedVideo
from vlmtemporal.sources import Limits
from vlmtemporal.video import ffmpeg


TESTS = str(Path(__file__).parent)
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
    answer = engine.answer
    def held(*args):
        busy.set()
        assert answered.wait(PATIENCE), 'the health check waits for the model: something blocks the event loop'
        return answer(*args)
    engine.answer = held
    with TestClient(create_app(engine)) as client, ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.post, '/predict', files={'video': ('clip.mp4', video.read_bytes())})
        assert busy.wait(PATIENCE) and client.get('/healthz').json()['status'] == 'ok'
        answered.set()
        assert job.result().status_code == 200


def test_bad_uploads(server, video):
    url, tmp = server
    bad = post(url, b''), post(url, b'text'), post(url, video.read_bytes(), 1e5)
    assert [answer.status_code for answer in bad] == [400, 400, 400]
    lacking = httpx.post(f'{url}/predict', timeout=PATIENCE)
    assert lacking.status_code == 422 and lacking.json() == {'detail': 'video: Field required'}
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
    "The process that decodes it dies, hangs, eats memory or lies: 400 and a sentence, and the next one is answered."
    monkeypatch.setattr('vlmtemporal.engine.UPLOAD_LIMITS', Limits(memory=2**28, time=3))
    with monkeypatch.context() as patch:
        patch.setattr(GuardedVideo, 'decoder', f'misbehaving:{what}')
        answer = upload(client, b'whatever')
    assert answer.status_code == 400 and list(answer.json()) == ['detail']
    said = answer.json()['detail']
    assert said.isprintable() and '/' not in said and 20 < len(said) < 200
    assert client.get('/healthz').status_code == 200
    assert not list(Path(tempfile.gettempdir()).glob('vlmtemporal-*'))
    assert upload(client, video.read_bytes()).status_code == 200


def test_what_nobody_thought_of_is_the_files_fault_too(client, monkeypatch):
    def surprise(*args): raise ZeroDivisionError('/secret/path')
    monkeypatch.setattr('vlmtemporal.engine.sample_clip', surprise)
    monkeypatch.setattr(GuardedVideo, 'decoder', 'misbehaving:Grey')
    answer = upload(client, b'whatever')
    assert (answer.status_code, answer.json()) == (400, dict(detail='the video cannot be used (ZeroDivisionError)'))


def test_a_server_that_cannot_decode_now_says_so(client, monkeypatch):
    monkeypatch.setattr(GuardedVideo, 'decoder', 'misbehaving:absent')
    answer = upload(client, b'whatever')
    assert answer.status_code == 503 and 'try again' in answer.json()['detail'] and '/' not in answer.json()['detail']


@pytest.mark.parametrize('name', ['list.m3u8', 'list.txt', 'list.mp4', 'list.sdp', 'list'])
@pytest.mark.parametrize('text', ['#EXTM3U\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n', "ffconcat version 1.0\nfile '{}'\n",
                                  'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n', '{}', 'file://{}'])
def test_a_posted_list_gives_no_other_file_away(name, text, client, video):
    answer = upload(client, text.format(video).encode(), name)
    assert answer.status_code == 400 and 'cannot be decoded as video' in answer.json()['detail']


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
    from vlmtemporal.app import show
    with pytest.warns(UserWarning) as told: _, _, shown = show(engine, str(torn), 0.)
    assert json.loads(shown)['warnings'] == answer.json()['warnings']
    assert set(answer.json()['warnings']) <= {str(w.message) for w in told}
    assert engine.analyze(torn, stride=5, trusted=False).warnings == tuple(answer.json()['warnings'])


def test_the_page_trusts_nobody(engine, monkeypatch, tmp_path):
    import gradio as gr
    from vlmtemporal.app import show
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [TESTS, os.environ.get('PYTHONPATH')])))
    monkeypatch.setattr(GuardedVideo, 'decoder', 'misbehaving:crashes')
    (tmp_path/'clip.mp4').write_bytes(b'whatever')
    with pytest.raises(gr.Error, match='crashes') as caught: show(engine, str(tmp_path/'clip.mp4'), 0.)
    assert str(tmp_path) not in str(caught.value)
