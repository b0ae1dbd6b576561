"Live sources: the frames of `sample_clip`, two seconds behind, back after a loss, and no larger after hours."
import contextlib, gc, itertools, json, os, re, shutil, signal, socket, subprocess, sys, threading, time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import cv2
import numpy as np
import pytest

from forked import started
from vlmtemporal.basics import BadInput, VLMTemporalError, rng
from vlmtemporal.batching import Busy, Cancelled, Ticket
from vlmtemporal.decode import Prediction
from vlmtemporal.frames import FrameSpec, enough_for, largest_lag
from vlmtemporal.live import (GAP, MAX_RATE, Clock, LiveFeed, LiveSource, LiveTimeline, _frames_of_video, _Pace, _Times,
                              _Windows, follow_live, operator_source)
from vlmtemporal.operations import LOGISTICS, Grammar
from vlmtemporal.samplers import get_sampler
from vlmtemporal.sampling import sample_clip
from vlmtemporal.sources import Video
from vlmtemporal.timeline import STEP, TimelinePrior, decode_timeline, emissions, live_labels
from vlmtemporal.video import ffmpeg, open_video, write_video

CHECK = os.environ.get('VLMTEMPORAL_SERVE_CHECK') == '1'
NAMES = LOGISTICS.names


class Hurried(Clock):
    "Time that passes when somebody sleeps."
    def __init__(self): self.seconds, self.slept = 0., []
    def now(self): return self.seconds
    def sleep(self, seconds, stop):
        self.seconds += max(seconds, 0)
        self.slept.append(seconds)


def answer(example, name=None, p=.9):
    "What a model may say."
    name = name or NAMES[int(example.start//20) % len(NAMES)]
    probabilities = {n: p if n == name else (1 - p)/(len(NAMES) - 1) for n in NAMES}
    return Prediction(example.key, None, 'constrained', probabilities, probabilities)


class Null:
    "An engine that takes no time, or as long as the test says."
    def __init__(self, spec=None, grammar=True, says=answer, later=False):
        self.taxonomy, self.spec = LOGISTICS, spec or FrameSpec(sampler='uniform', size=(64, 64))
        counts = np.ones((len(NAMES), len(NAMES)))
        known = Grammar(LOGISTICS, counts, np.full(len(NAMES), np.log(8.)), np.full(len(NAMES), .5))
        self.prior = TimelinePrior(known, em_iterations=2) if grammar else None
        self.says, self.later, self.asked, self.open = says, later, [], []
    def at_work(self): return contextlib.nullcontext()
    def ask(self, examples, ticket, decoder='constrained'):
        self.asked += examples
        self.open += (futures := [Future() for _ in examples])
        self.waiting = list(zip(examples, futures))
        if not self.later: self.answer_all()
        return futures
    def answer_all(self):
        for example, future in self.waiting: future.set_result(self.says(example))
        self.waiting = []


def grey(i, side=64): return np.full((side, side, 3), i % 251, np.uint8)


def texture(seed, n=260, size=(96, 64)):
    "Frames with something to see, which moves by fits and starts."
    r = rng(seed, 'texture')
    base = cv2.resize(r.integers(0, 255, (16, 24, 3)).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
    at = np.cumsum(r.exponential(1, n)*(r.random(n) < .2)*6).astype(int)
    return [np.roll(base, s, 1) for s in at]


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "A video of another rate than clips have."
    path = tmp_path_factory.mktemp('live')/'odd.mp4'
    write_video(path, texture(0), 30)
    return path


# --- the frames

def windows_of(video, spec, starts):
    "What a ring chooses for windows at these places, each as soon as it has been seen."
    ring, found, left = _Windows(spec, video.info.fps, largest_lag(video)), {}, list(starts)
    enough = enough_for(spec, get_sampler(spec.sampler).score)
    for i, frame in video.scan(lambda frames: frames, enough):
        ring.add(float(video.times[i]), 0., frame)
        while left and video.times[i] >= left[0] + (spec.n_frames - 1)/spec.fps - 1e-6:
            found[left[0]] = ring.sample(left[0], 'test')[0]
            left.pop(0)
    return found, ring


SPECS = [FrameSpec(sampler='uniform', size=(64, 64)), FrameSpec(sampler='entropy', size=(48, 40)),
         FrameSpec(sampler='difference', size=None), FrameSpec(sampler='chi-square-inverse', context_seconds=1.),
         FrameSpec(sampler='flow-mix', n_frames=60, fps=15, k=5), FrameSpec(sampler='random', n_frames=40, fps=20, k=3)]


@pytest.mark.parametrize('which, spec', [('mock', SPECS[3]), *(('odd', spec) for spec in SPECS)],
                         ids=lambda x: getattr(x, 'sampler', x))
def test_a_file_gives_the_frames_of_sample_clip(spec, which, video, odd):
    source = open_video(video if which == 'mock' else odd)
    starts = [0., 1., 2., round(2.4*spec.fps)/spec.fps, 3.]
    found, _ = windows_of(_first(source, 8.2), spec, starts)
    assert sorted(found) == sorted(starts)
    for start, example in found.items():
        clip = sample_clip(source, start, spec)
        assert example.indices.tolist() == clip.indices.tolist(), start
        assert (example.frames == clip.frames).all()
        assert (example.n_frames, example.fps) == (clip.n_frames, spec.fps)


class _first(Video):
    "The first seconds of a video."
    def __init__(self, video, seconds):
        n = int((video.times < seconds).sum())
        self._video, self.times = video, video.times[:n]
        self.info = replace(video.info, n_frames=n, duration=float(self.times[-1]) + 1/video.info.fps)
    def _read(self, indices, size, enough): return self._video._read(indices, size, enough)
    def _blocks(self, length, enough, first, stop): return self._video._blocks(length, enough, first, stop)


def test_a_score_that_looks_ahead_ends_where_the_recording_does(video):
    "Of the future nothing is known: the window is chosen as from a recording that ends with it."
    spec, source = FrameSpec(sampler='novelty', size=(64, 64)), open_video(video)
    found, _ = windows_of(_first(source, 8.2), spec, [1., 3.])
    for start, example in found.items():
        clip = sample_clip(_first(source, start + 4.97), spec=spec, start=start)
        assert example.indices.tolist() == clip.indices.tolist()


def test_the_ring_is_bounded_whatever_the_source():
    "A camera of 1,000 frames a second, and clips of a minute."
    ring = _Windows(FrameSpec(sampler='difference', size=(64, 64)))
    feed = LiveFeed(Null(FrameSpec(sampler='difference', size=(64, 64))), clock=Hurried())
    for i in range(12_000): feed.put(i/1000, grey(i))
    ring = feed._windows
    kept = [f for f in ring.frames if f.picture is not None]
    assert len(ring.frames) <= MAX_RATE*ring.span + 2 and len(kept) <= 2*25*ring.span
    long = _Windows(FrameSpec(n_frames=1500, size=(512, 512)))
    for i in range(3): long.add(i/25, 0., grey(i, 512))
    assert isinstance(long.frames[0].picture, bytes) and len(long.frames[0].picture) < 2e4
    assert long.frames[0].shown().shape == (512, 512, 3)


# --- the timeline

def learnt(seed=0):
    r = rng(seed, 'live grammar')
    counts = r.integers(0, 9, (len(NAMES), len(NAMES)))*1.
    return Grammar(LOGISTICS, counts, np.log(r.uniform(3, 9, len(NAMES))), r.uniform(.3, .6, len(NAMES)))


def votes(seed, n):
    r = rng(seed, 'votes')
    labels = np.repeat(r.integers(0, len(NAMES), n//6 + 1), 6)[:n]
    return .6*np.eye(len(NAMES))[labels] + .4*r.dirichlet(np.ones(len(NAMES)), n)


@pytest.mark.parametrize('prior', [None, TimelinePrior(learnt(), em_iterations=4)], ids=['plain', 'grammar'])
@pytest.mark.parametrize('lag', [0., 2., 7.])
def test_what_has_settled_stays_and_settles_after_the_lag(prior, lag):
    line, before = LiveTimeline(LOGISTICS, prior, lag), ()
    for i, p in enumerate(votes(1, 60)):
        line.add(float(i), p)
        now = line.segments()
        assert line.settled >= i + 5 - lag - STEP - 1e-6
        assert now[0].start == 0 and now[-1].end == line.end == i + 5
        assert all(a.end == b.start and a.operation != b.operation for a, b in zip(now, now[1:]))
        label = lambda t, segments=now: next(s.operation for s in segments if s.start - 1e-9 <= t < s.end)
        assert all(label(t) == name for t, name in before)
        before = [(t, label(t)) for t in np.arange(.1, line.settled - .1, .2)]
        assert line.operation == now[-1].operation and 0 < line.probability <= 1
    line.finish()
    assert line.settled == line.segments()[-1].end == 64


def test_with_a_long_lag_it_is_the_timeline_of_the_whole_video():
    "No lag is longer than a session of 25 s: what remains is the same work as offline."
    prior, p = TimelinePrior(learnt(3), em_iterations=2), votes(3, 21)
    line = LiveTimeline(LOGISTICS, prior, 30.)
    for i, row in enumerate(p): line.add(float(i), row)
    line.finish()
    rows = emissions(np.arange(21.), p, 25., 2)
    offline = decode_timeline(rows, prior.grammar, 25., emission_scale=prior.emission_scale)
    assert line.segments() == offline.segments


def test_a_gap_begins_anew_and_history_is_bounded():
    line = LiveTimeline(LOGISTICS, TimelinePrior(learnt()), history=60.)
    for i, p in enumerate(votes(2, 100)): line.add(float(i), p)
    assert 60 <= line.end - line.segments()[0].start < 100
    line.add(104 + GAP + 1, votes(2, 1)[0])
    segments = line.segments()
    assert any(a.end == 104 and b.start == 104 + GAP + 1 for a, b in zip(segments, segments[1:]))


def bytes_held(root, ignored=()):
    "All that can be reached from an object, classes and code left out."
    seen, todo, total = {id(x) for x in ignored}, [root], 0
    while todo:
        x = todo.pop()
        if id(x) in seen or isinstance(x, (type, type(os), type(bytes_held), type(os.stat))): continue
        seen.add(id(x))
        total += sys.getsizeof(x)
        todo += gc.get_referents(x)
        if isinstance(x, np.ndarray) and x.base is not None: todo.append(x.base)
    return total


def test_live_labels_hold_on_to_nothing():
    "Of a quarter of an hour of rows no more is kept than of two minutes."
    g, r = learnt(), rng(0, 'rows')
    assert len(g.prior) # is computed once
    labels = live_labels((r.dirichlet(np.ones(len(NAMES))) for _ in range(4500)), g, 2., longest=60.)
    held = []
    for i, _ in enumerate(labels):
        if i in (600, 2200, 4400): held.append(bytes_held(labels.gi_frame.f_locals['hsmm']))
    assert i == 4499 and held[2] < 1.1*held[1] and held[2] < 2e6, held


def test_a_segment_longer_than_the_longest_is_still_found():
    g = learnt()
    rows = np.eye(len(NAMES))[np.repeat([1, 2, 1], [400, 3000, 300])]
    found = list(live_labels(rows, g, 2., longest=60.))
    assert found == [NAMES[i] for i in np.repeat([1, 2, 1], [400, 3000, 300])]


# --- the feed

def test_a_feed_answers_every_stride_and_says_what_comes_next():
    engine, clock = Null(), Hurried()
    feed = LiveFeed(engine, stride=1., clock=clock)
    for i in range(25*12): feed.put(i/25, grey(i))
    found = feed.moments()
    assert [e.start for e in engine.asked] == [0., 1., 2., 3., 4., 5., 6., 7.]
    assert [m.time for m in found] == [5., 6., 7., 8., 9., 10., 11., 12.] and not feed.moments()
    last = found[-1]
    assert last.state == 'live' and last.operation == NAMES[0] and last.behind == 0 and not last.dropped
    assert NAMES[0] not in last.next and sum(last.next.values()) == pytest.approx(1)
    assert last.picture.shape == (64, 64, 3) and last.picture[0, 0].tolist() == [(25*12 - 1) % 251]*3
    feed.end()
    [end] = feed.moments()
    assert end.state == 'ended' and end.settled == end.segments[-1].end == 12.
    feed.put(99., grey(0)) # is passed over
    assert not feed.moments()


def test_windows_are_left_out_rather_than_answered_late():
    "The model takes 2.5 s: every answer is about the newest frames there were."
    engine, clock = Null(later=True), Hurried()
    feed, begun = LiveFeed(engine, clock=clock), None
    for i in range(25*30):
        clock.seconds = i/25
        feed.put(i/25, grey(i))
        if engine.waiting_now() and begun is None: begun = clock.seconds
        if begun is not None and clock.seconds >= begun + 2.5 - 1e-9:
            engine.answer_all()
            begun = None
    moments = feed.moments()
    assert len(moments) >= 9 and all(2.4 < m.behind < 2.6 for m in moments)
    starts = np.array([e.start for e in engine.asked])
    assert (np.diff(starts) > 2.4).all() and (np.diff(starts) < 2.7).all()
    assert moments[-1].dropped >= len(moments) - 1


Null.waiting = ()
Null.waiting_now = lambda self: bool(self.waiting)


def test_nothing_is_said_across_a_hole():
    engine = Null()
    feed = LiveFeed(engine, hole=.5, clock=Hurried())
    for i in range(25*30):
        if not 8 < i/25 < 12: feed.put(i/25, grey(i))
    starts = [e.start for e in engine.asked]
    assert [s for s in starts if 3.6 < s < 11.4] == [] and starts[:4] == [0., 1., 2., 3.]
    assert min(s for s in starts if s > 4) <= 12 and len(starts) > 15


@pytest.mark.parametrize('rate', [2, 5, 7.3, 60])
def test_frames_of_any_rate_and_out_of_order(rate):
    "A browser gives what it can: late, twice, backwards, at its own pace."
    engine, r = Null(), rng(rate, 'jitter')
    feed = LiveFeed(engine, clock=Hurried())
    for i in range(int(rate*20)):
        at = i/rate + r.uniform(-.3, .3)/rate
        feed.put(at, grey(i))
        if i % 7 == 0:
            feed.put(at, grey(i))
            feed.put(at - .5, grey(i))
    feed.put(float('nan'), grey(0))
    assert len(engine.asked) >= 13
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), None, 'x'):
        with pytest.raises(BadInput): feed.put(99., wrong)


def test_sizes_may_change_on_the_way():
    feed = LiveFeed(Null(), clock=Hurried())
    for i in range(200): feed.put(i/25, grey(i, 64 if i < 90 else 200))
    assert len(feed.moments()) == 4


def test_a_busy_engine_costs_a_window_and_a_broken_one_is_told():
    def says(example):
        if example.start == 2: raise Busy('no place')
        return answer(example)
    class Engine(Null):
        def ask(self, examples, ticket, decoder='constrained'):
            try: return super().ask(examples, ticket)
            except Busy as e:
                self.waiting = []
                raise e
    feed = LiveFeed(Engine(says=says), clock=Hurried())
    for i in range(25*9): feed.put(i/25, grey(i))
    assert [m.time for m in feed.moments()] == [5., 6., 8., 9.]
    def fails(example): raise VLMTemporalError('the model broke')
    feed = LiveFeed(Null(later=True), clock=Hurried())
    for i in range(25*6): feed.put(i/25, grey(i))
    feed._engine.waiting[0][1].set_exception(VLMTemporalError('the model broke'))
    with pytest.raises(VLMTemporalError, match='broke'): feed.moments()


def test_a_request_that_has_ended_gets_nothing():
    ticket = Ticket()
    feed = LiveFeed(Null(), clock=Hurried(), ticket=ticket)
    ticket.cancel()
    with pytest.raises(Cancelled): feed.moments()


def test_without_a_grammar_and_shorter_than_a_window():
    feed = LiveFeed(Null(grammar=False), clock=Hurried())
    for i in range(60): feed.put(i/25, grey(i))
    feed.end()
    *_, last = feed.moments()
    assert last.state == 'ended' and last.windows == 1
    assert [(s.start, s.end) for s in last.segments] == [(0., 2.4)]


# --- sources

def test_only_the_operator_names_a_source(tmp_path):
    "A text that reaches `follow_live` is a file's path and nothing else."
    for text in ('rtsp://127.0.0.1:1/x', 'http://127.0.0.1:1/x', '0', 'file:/etc/passwd', 'concat:a|b', '/dev/video0'):
        with pytest.raises(BadInput, match='no such video|neither'): next(follow_live(Null(), text))
    for text in ('file:///etc/passwd', 'ftp://h/x', 'http://', 'concat://a', 'rtsp://[x', 'data://x'):
        with pytest.raises(BadInput) as e: operator_source(text)
        assert 'give' in str(e.value) or 'check' in str(e.value)
    source = operator_source('rtsp://me:secret@cam.example:8554/a?b=secret')
    assert 'secret' not in repr(source) and 'secret' not in source.name and source.name == 'rtsp://cam.example:8554/a'
    with pytest.raises(BadInput, match='no such camera'): operator_source('97')
    assert operator_source('a/b.mp4') == Path('a/b.mp4')


def test_a_client_cannot_name_a_source():
    "Only what starts a server or a command reads an operator's text: the rooms of the API do not know how."
    import vlmtemporal
    folder = Path(vlmtemporal.__file__).parent
    users = {p.stem for p in folder.glob('*.py') if 'operator_source(' in p.read_text()}
    assert users <= {'live', 'app', 'cli', 'serve'}


def test_a_file_is_read_at_its_own_pace(video):
    clock = Hurried()
    frames = _frames_of_video(open_video(video), FrameSpec(size=(64, 64)), clock, threading.Event())
    for at, _, due in itertools.islice(frames, 100):
        assert due == pytest.approx(at) and clock.seconds == pytest.approx(at)
    frames.close()


def test_a_file_that_is_decoded_too_slowly_is_caught_up_with(video):
    "Each frame takes a tenth of a second: most are passed over, none is more than a second late."
    class Slow(Hurried):
        def sleep(self, seconds, stop): super().sleep(max(seconds, 0) + .1, stop)
    clock = Slow()
    seen = [(at, clock.seconds - due) for at, _, due in
            itertools.islice(_frames_of_video(open_video(video), FrameSpec(), clock, threading.Event()), 150)]
    assert max(late for _, late in seen) <= 1.001 and seen[-1][0] > 12
    assert all(a < b for (a, _), (b, _) in zip(seen, seen[1:]))


def test_the_clock_of_a_camera():
    clock = Hurried()
    pace = _Pace(clock, holds=False)
    assert pace.due(0.) == 0
    clock.seconds = 3.
    assert pace.due(1.) == 1, 'it was there before: this machine was late'
    assert pace.due(1.04, waited=True) == 3, 'nothing fresher was to be had'
    assert pace.due(5.) == 3., 'a camera gives nothing before its time'
    held = _Pace(clock, holds=True)
    assert (held.due(0.), held.due(2.)) == (3., 5.)


def test_times_that_jump_or_are_missing():
    clock = Hurried()
    times = _Times(clock)
    def at(now, pts):
        clock.seconds = now
        return round(times(pts, .001), 3)
    assert [at(0, 5_000_000), at(.04, 5_000_040), at(.1, 5_000_080)] == [0, .04, .08]
    assert at(1., 7) == 1. and at(1.1, 107) == 1.1, 'began anew'
    assert at(2., None) == 2. and at(60., 90_000_000) == 60.
    times.restart()
    assert at(61., 90_000_040) == 61.


def mjpeg(frames, fps):
    "A multipart stream as web cameras send it."
    for frame in frames:
        data = cv2.imencode('.jpg', frame)[1].tobytes()
        yield b'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n' % (len(data), data)
        time.sleep(1/fps)


@pytest.fixture
def camera():
    "A web camera that hangs up after some frames; `lives` is how many frames each connection gets."
    lives = []
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            if not lives: return self.send_error(503)
            self.send_response(200)
            self.send_header('Content-Type', 'multipart/x-mixed-replace;boundary=frame')
            self.end_headers()
            frames = itertools.islice(itertools.cycle(texture(1)), lives.pop(0))
            try:
                for part in mjpeg(frames, 50): self.wfile.write(part)
            except OSError: pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/cam', lives
    server.shutdown()
    server.server_close()


SHORT = FrameSpec(sampler='uniform', k=4, size=(64, 64), n_frames=20, fps=10)


class Hasty(Clock):
    "Pauses between attempts are short."
    def __init__(self): self.pauses = []
    def sleep(self, seconds, stop):
        if seconds >= .9: self.pauses.append(seconds)
        super().sleep(min(seconds, .05), stop)


def test_a_camera_that_goes_away_is_found_again(camera):
    address, lives = camera
    lives += [150, 0, 0, 150, 150]
    clock, engine, stop = Hasty(), Null(SHORT), threading.Event()
    moments = []
    for m in follow_live(engine, operator_source(address), stride=.5, clock=clock, stop=stop):
        moments.append(m)
        if m.state == 'live' and len([x for x in moments if x.state == 'waiting']) >= 3: stop.set()
    states = [state for state, _ in itertools.groupby(moments, lambda m: m.state)]
    assert states[:3] == ['live', 'waiting', 'live'] and states[-1] == 'ended'
    said = [m.message for m in moments if m.state == 'waiting']
    assert all('tried again in' in s and '/cam' in s for s in said)
    assert clock.pauses[:3] == [1., 2., 4.], 'the pauses grow'
    assert [m.time for m in moments] == sorted(m.time for m in moments)
    assert max(m.behind for m in moments) < 2


@pytest.fixture
def web(tmp_path):
    "A folder on a web server, and its address."
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_a_file_on_a_web_server_has_an_end(web, odd):
    folder, address = web
    shutil.copy(odd, folder/'a.mp4')
    subprocess.run([ffmpeg(), '-v', 'error', '-i', str(odd), '-c', 'copy', '-f', 'hls', '-hls_time', '2',
                    '-hls_list_size', '0', str(folder/'a.m3u8')], check=True)
    for name in ('a.mp4', 'a.m3u8'):
        found = list(follow_live(Null(SHORT), operator_source(f'{address}/{name}'), clock=Hurried()))
        assert found[-1].state == 'ended' and found[-1].settled == pytest.approx(260/30, abs=.2), name


def test_a_playlist_cannot_name_files_of_this_machine(web, odd, tmp_path_factory):
    "The address is the operator's, but what lies there is somebody else's."
    folder, address = web
    secret = tmp_path_factory.mktemp('secret')/'secret.ts'
    subprocess.run([ffmpeg(), '-v', 'error', '-i', str(odd), '-c', 'copy', str(secret)], check=True)
    for place in (f'file://{secret}', str(secret), f'concat:{secret}', f'subfile,,start,0,end,0,,:{secret}'):
        text = f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:8.6,\n{place}\n#EXT-X-ENDLIST\n'
        (folder/'bad.m3u8').write_text(text)
        with pytest.raises(BadInput, match='cannot be followed'):
            list(follow_live(Null(SHORT), operator_source(f'{address}/bad.m3u8'), clock=Hurried()))


class Rtsp(StreamRequestHandler):
    "As much of RFC 2326 as a camera needs that sends its packets through the connection itself."
    def handle(self):
        while lines := self.request_lines():
            method, headers = lines[0].split()[0], dict(x.split(': ', 1) for x in lines[1:])
            more, body = '', ''
            if method == 'DESCRIBE': more, body = 'Content-Type: application/sdp\r\n', self.server.sdp
            if method == 'SETUP': more = 'Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n'
            head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
            self.wfile.write((head + body).encode())
            if method == 'PLAY': return self.play()
    def request_lines(self):
        lines = []
        while line := self.rfile.readline().decode().strip(): lines.append(line)
        return lines
    def play(self):
        with contextlib.suppress(OSError):
            for _ in range(self.server.packets):
                data = self.server.rtp.recv(2**16)
                self.wfile.write(b'$\0' + len(data).to_bytes(2, 'big') + data)


@pytest.fixture
def rtsp(video, tmp_path):
    "A camera that speaks RTSP: FFmpeg makes the packets."
    rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    rtp.bind(('127.0.0.1', 0))
    rtp.settimeout(20)
    sdp = tmp_path/'camera.sdp'
    command = [ffmpeg(), '-v', 'error', '-re', '-stream_loop', '-1', '-i', str(video), '-an', '-c:v', 'libx264',
               '-preset', 'ultrafast', '-threads', '1', '-g', '12', '-vf', 'scale=160:120', '-f', 'rtp',
               '-sdp_file', str(sdp), f'rtp://127.0.0.1:{rtp.getsockname()[1]}']
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            rtp.recv(2**16)
            server = ThreadingTCPServer(('127.0.0.1', 0), Rtsp)
            server.daemon_threads, server.rtp, server.packets = True, rtp, 10**9
            text = sdp.read_text().replace('SDP:\n', '')
            server.sdp = re.sub(r'm=video \d+', 'm=video 0', text).strip() + '\r\na=control:streamid=0\r\n'
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f'rtsp://127.0.0.1:{server.server_address[1]}/cam', server
            server.shutdown()
            server.server_close()
        finally:
            process.kill()
            rtp.close()


def test_a_camera_that_speaks_rtsp(rtsp):
    "It is followed, hangs up, and is followed again."
    address, server = rtsp
    engine, clock, found, stop = Null(SHORT), Hasty(), [], threading.Event()
    server.packets = 200
    for m in follow_live(engine, operator_source(address), stride=.5, clock=clock, stop=stop):
        found.append(m)
        states = [state for state, _ in itertools.groupby(found, lambda m: m.state)]
        if states[:3] == ['live', 'waiting', 'live']: stop.set()
    assert states == ['live', 'waiting', 'live', 'ended'] and found[0].picture.shape == (120, 160, 3)
    assert engine.asked[0].frames.std() > 10, 'there is something to see'
    assert max(m.behind for m in found) < 2


def test_what_was_never_there_is_refused_unless_one_is_patient():
    source = operator_source('http://127.0.0.1:9/cam')
    with pytest.raises(BadInput, match='cannot be followed'): list(follow_live(Null(SHORT), source, clock=Hasty()))
    stop, clock = threading.Event(), Hasty()
    told = []
    for m in follow_live(Null(SHORT), source, clock=clock, stop=stop, patient=True):
        told.append(m)
        if len(clock.pauses) > 7: stop.set()
    assert told[-1].state == 'ended' and clock.pauses[:7] == [1., 2., 4., 8., 16., 30., 30.]


def test_a_device_is_read_as_cameras_are():
    "FFmpeg's made-up camera, which nothing holds back."
    device = LiveSource('test', 'testsrc2=size=320x240:rate=25', 'lavfi')
    engine = Null(SHORT)
    found = list(itertools.islice(follow_live(engine, device, stride=.5), 3))
    assert [m.state for m in found] == ['live']*3 and found[0].picture.shape == (240, 320, 3)
    assert len(np.unique(engine.asked[0].frames)) > 20


def test_hours_leave_nothing_behind():
    "Eight hours of a camera with a model that costs nothing; the short form is twenty minutes."
    seconds, fps = (8*3600, 5) if CHECK else (1200, 5)
    spec = FrameSpec(sampler='difference', k=4, size=(32, 32), n_frames=25, fps=5)
    clock, engine = Hurried(), Null(spec)
    feed = LiveFeed(engine, clock=clock)
    sizes, count, steps = [], 0, 8
    for part in range(steps):
        for i in range(part*seconds*fps//steps, (part + 1)*seconds*fps//steps):
            clock.seconds = i/fps
            feed.put(i/fps, grey(i, 32))
            if i % 20 == 0: count += len(feed.moments())
            engine.asked.clear()
            engine.open.clear()
        feed.moments()
        sizes.append(bytes_held(feed, [engine, clock, engine.prior.grammar]))
    assert count > .9*seconds and feed.timeline.settled > seconds - 4
    assert max(sizes[-3:]) < 1.05*sizes[4], sizes # by then ten minutes of history are full
    print(f'{seconds/3600:.1f} h, bytes after each eighth: {sizes}')


# --- the command line

def test_live_from_the_command_line(cli, odd):
    code, out, err = cli('live', odd, '--json', '--seconds', 6)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and lines[-1]['state'] == 'ended' and lines[-1]['settled'] == pytest.approx(6, abs=.05)
    assert err.splitlines()[0] == 'loading tiny' and err.count('trained on drawn videos') == 1
    assert {'time', 'operation', 'probability', 'next', 'behind', 'dropped', 'segments'} <= set(lines[0])
    code, out, err = cli('live', 'nowhere.mp4')
    assert code == 2 and 'no such video' in err and len(err.splitlines()) == 1


def test_ctrl_c_ends_it_in_good_order(video):
    command = [*started(), 'live', str(video)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and first.strip() and 'Traceback' not in err
    assert 'ended' in err


@pytest.mark.skipif(not CHECK, reason='90 seconds at real pace: VLMTEMPORAL_SERVE_CHECK=1')
def test_the_small_model_is_two_seconds_behind_at_most(video):
    from vlmtemporal.engine import Engine
    engine = Engine()
    engine.warm_up()
    moments = list(follow_live(engine, video))
    behind = sorted(m.behind for m in moments if m.state == 'live')
    print(f'behind: median {behind[len(behind)//2]:.2f} s, most {behind[-1]:.2f} s; {moments[-1].dropped} left out')
    assert behind[-1] <= 2 and moments[-1].windows > 60
