"The page: what a visitor sees, what is escaped, who is let go, what a program gets."
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from shutil import which

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from vlmtemporal.app import EXAMPLES, Visitors, _camera_picture, _Cameras, _captions, _clip_html, _last, _picture
from vlmtemporal.app import _refusal, mount, show_clip, show_video
from vlmtemporal.basics import BadInput
from vlmtemporal.engine import Engine
from vlmtemporal.frames import FrameSpec
from vlmtemporal.guard import GuardedVideo

TESTS = str(Path(__file__).parent)
TAPE = str(EXAMPLES[0].path)


@pytest.fixture(scope='module')
def engine(): return Engine('tiny', 'none')


def last_clip(engine, video, start=0.):
    with engine.place() as ticket: *_, (html, answer) = show_clip(engine, ticket, str(video), start)
    return html, answer


def test_what_the_page_shows_is_what_the_model_saw(video, monkeypatch):
    "One choice of frames, by the engine's recipe, for the pictures and for the answer; a clip is sampled once."
    from vlmtemporal import engine as module
    spec = FrameSpec('uniform', 3, size=(112, 112), roi=(0, 0, .5, 1), context_seconds=1.)
    engine, asked, sampled = Engine('tiny', 'none', spec=spec), [], []
    constrained, sample = module.DECODERS['constrained'], module.sample_clip
    def listen(loaded, examples, taxonomy, **options):
        asked.extend(examples)
        return constrained(loaded, examples, taxonomy, **options)
    def count(*args):
        sampled.append(args)
        return sample(*args)
    monkeypatch.setitem(module.DECODERS, 'constrained', listen)
    monkeypatch.setattr(module, 'sample_clip', count)
    html, answer = last_clip(engine, video, 20.)
    assert len(sampled) == len(asked) == 1
    chosen = engine.sample(video, 20.)
    assert chosen.spec == spec and len(chosen.indices) == html.count('<li><img') == 5
    assert (chosen.indices < 0).sum() == 2
    assert np.array_equal(asked[0].indices, chosen.indices) and np.array_equal(asked[0].frames, chosen.frames)
    assert all(_picture(frame) in html for frame in chosen.frames)
    captions = _captions(chosen, None)
    assert [caption.split()[1] for caption in captions] == [str(i) for i in chosen.indices]
    assert all(f'<span>{caption}' in html for caption in captions)


def misbehave(monkeypatch, how):
    "The process that decodes what strangers send does so."
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [TESTS, os.environ.get('PYTHONPATH')])))
    monkeypatch.setattr(GuardedVideo, 'decoder', f'misbehaving:{how}')


def test_the_page_trusts_nobody(engine, monkeypatch, tmp_path):
    import gradio as gr
    misbehave(monkeypatch, 'crashes')
    (tmp_path/'clip.mp4').write_bytes(Path(TAPE).read_bytes()[:2000])
    visitors, path = Visitors(engine), str(tmp_path/'clip.mp4')
    for show in (lambda t: show_clip(engine, t, path), lambda t: show_video(engine, t, path)):
        *_, (html,) = visitors.told('ada', show, lambda html: (html,))
        assert 'role="alert"' in html and 'crashes' in html and str(tmp_path) not in html
        with pytest.raises(gr.Error, match='crashes') as caught: _last(visitors, 'ada', show)
        assert str(tmp_path) not in str(caught.value)
    assert not engine.in_use


def test_names_are_escaped(engine, tmp_path):
    "Of files, of operations, of whatever is wrong."
    evil = '<img src=x onerror=alert(1)>'
    path = tmp_path/f'{evil}.mp4'
    path.write_bytes(Path(TAPE).read_bytes())
    with engine.place() as ticket: strips, pages, _ = zip(*show_video(engine, ticket, str(path)))
    assert evil not in strips[-1] + pages[-1] and '&lt;img src=x' in pages[-1]
    visitors = Visitors(engine)
    def fail(ticket): raise BadInput(evil, evil)
    *_, (html,) = visitors.told('ada', fail, lambda html: (html,))
    assert evil not in html and '&lt;img' in html
    assert 'secret' not in _refusal(ValueError('secret'))


def test_warnings_are_shown(engine, video):
    clip = engine.sample(video, 3.)
    with engine.place() as ticket: html = _clip_html(engine, ticket, replace(clip, warnings=('<b>half of it is lost',)))
    assert '&lt;b&gt;half of it is lost' in html


def test_who_leaves_is_waited_for_no_longer(engine, monkeypatch):
    "A visitor who closes the page gives the place up at once, also in the middle of a decoding."
    misbehave(monkeypatch, 'hangs')
    visitors, seen = Visitors(engine), []
    def visit(): seen.extend(visitors.told('ada', lambda t: show_clip(engine, t, TAPE), lambda html: (html, None)))
    thread = threading.Thread(target=visit)
    thread.start()
    time.sleep(.5)
    assert engine.in_use == 1
    visitors.leave('grace')
    assert engine.in_use == 1
    begin = time.monotonic()
    visitors.leave('ada')
    thread.join(20)
    assert not thread.is_alive() and time.monotonic() - begin < 5 and not engine.in_use
    assert 'stopped' in seen[-1][0]


@pytest.fixture(scope='module')
def url(engine):
    "The page, served by a thread."
    server = uvicorn.Server(uvicorn.Config(mount(FastAPI(), engine), port=0, log_level='error'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started: time.sleep(.05)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    server.should_exit = True
    thread.join(20)


def test_who_waits_for_a_turn_sees_how_many_come_first(engine):
    before = [engine._films.come() for _ in range(3)]
    with engine.place() as ticket:
        told = show_video(engine, ticket, str(TAPE))
        pages = [next(told)[1] for _ in range(2)]
        told.close()
    for mine in before: engine._films.go(mine)
    assert 'videos that are read first: 1' in pages[1] and not engine.queued


def test_programs_call_the_page_by_name(engine, url, tmp_path):
    "The README's example: the JSON of an answer, of a timeline; a refusal is an error that says why."
    from gradio_client import Client, handle_file
    client = Client(url, verbose=False)
    named = client.view_api(return_format='dict')['named_endpoints']
    assert set(named) == {'/clip', '/video'}, 'what the page itself uses is private'
    assert [p['parameter_name'] for p in named['/clip']['parameters']] == ['video', 'start']
    assert [named[name]['returns'][0]['label'] for name in ('/clip', '/video')] == ['answer', 'timeline']
    answer = client.predict(handle_file(TAPE), 3., api_name='/clip')
    assert answer['dominant_operation'] in engine.taxonomy.names and answer['probabilities']
    timeline = client.predict(handle_file(TAPE), api_name='/video')
    assert timeline['segments'][-1]['end'] == 20 and timeline['warnings'] == []
    letter = tmp_path/'holiday.mp4'
    letter.write_text('this is a letter')
    with pytest.raises(Exception, match='cannot be decoded|no video') as caught:
        client.predict(handle_file(str(letter)), 0, api_name='/clip')
    assert '/' not in str(caught.value)
    client.close()
    assert not engine.in_use


def test_what_a_program_sends_by_mistake_is_told_in_a_sentence(engine, url, capfd):
    "A start before the video or that is no number, a video that is none: no traceback in the log."
    from gradio_client import Client, handle_file
    client, file = Client(url, verbose=False), handle_file(TAPE)
    for start in (-1., 1e9, 'abc', [1]):
        with pytest.raises(Exception, match='is no time at which a clip can begin; give seconds from 0'):
            client.predict(file, start, api_name='/clip')
    for video in (5, 'abc'):
        for name, rest in (('/clip', (0,)), ('/video', ())):
            with pytest.raises(Exception, match='the page cannot use what was sent'):
                client.predict(video, *rest, api_name=name)
    client.close()
    assert 'Traceback' not in ''.join(capfd.readouterr())


def test_a_path_is_no_upload(url):
    "Neither the page's own calls nor the named ones take a file that nobody has uploaded."
    file = dict(path='/etc/passwd', meta=dict(_type='gradio.FileData'))
    for number in range(12):
        body = dict(data=[file, 0], event_data=dict(index=0), fn_index=number, session_hash='x')
        for route in ('run/predict', 'queue/join'):
            answer = httpx.post(f'{url}/gradio_api/{route}', json=body, timeout=60)
            assert 'root:' not in answer.text
    for path in ('/etc/passwd', str(EXAMPLES[0].path.parent/'app.css')):
        assert httpx.get(f'{url}/gradio_api/file={path}', timeout=60).status_code in (403, 404)


def test_a_visitor_who_closes_the_page_is_let_go(engine, url, monkeypatch):
    "Gradio notices by the page's heartbeat, and the place is free at once."
    misbehave(monkeypatch, 'hangs')
    from gradio_client import Client, handle_file
    client = Client(url, verbose=False)
    client.submit(handle_file(TAPE), 3., api_name='/clip')
    deadline = time.monotonic() + 20
    while not engine.in_use and time.monotonic() < deadline: time.sleep(.05)
    assert engine.in_use == 1
    client.close()
    deadline = time.monotonic() + 20
    while engine.in_use and time.monotonic() < deadline: time.sleep(.05)
    assert not engine.in_use


@pytest.mark.parametrize('address', [
    None, 7, '/etc/passwd', 'file:///etc/passwd', 'http://127.0.0.1/x.png', 'data:image/png;base64,', 'data:image/png',
    'data:image/svg+xml;base64,PHN2Zy8+', 'data:image/png;base64,iVBORw0KGgo=', 'data:image/jpeg;base64,' + 'A'*2**23])
def test_a_camera_sends_pictures_and_nothing_else(address):
    with pytest.raises(BadInput, match='no picture'): _camera_picture(address)


def test_a_cameras_place_is_free_when_no_picture_comes(engine, monkeypatch):
    monkeypatch.setattr('vlmtemporal.app._IDLE', .2)
    cameras = _Cameras(Visitors(engine))
    address = _picture(np.zeros((48, 64, 3), np.uint8))
    assert 'first answer' in cameras.look('ada', address) and engine.in_use == 1
    assert cameras.look('ada', address) is None and engine.in_use == 1
    deadline = time.monotonic() + 10
    while engine.in_use and time.monotonic() < deadline: time.sleep(.05)
    assert not engine.in_use


@pytest.mark.skipif(os.environ.get('VLMTEMPORAL_SERVE_CHECK') != '1', reason='`make serve-check` visits with Chromium')
def test_a_visitors_tour(monkeypatch, tmp_path):
    "Through all tabs, at each width, light and dark; nothing is wider than the screen."
    pytest.importorskip('playwright')
    if not which('chromium'): pytest.skip('there is no Chromium here')
    import tour
    kept = []
    monkeypatch.setattr(tour, 'keep', kept.append)
    tour.main(str(tmp_path))
    assert set(tour.KEPT) <= set(kept[0]) and len(kept[0]) == len(list(tmp_path.glob('*.jpg'))) == 8*len(tour.LOOKS)
