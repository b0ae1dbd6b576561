"Pages to look at: what they show is true, labels cannot run, videos are found, and a copy is made where it is needed."
import base64, hashlib, json, re, shutil, subprocess, time
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import av
import numpy as np
import pytest

from vlmtemporal import viewing
from vlmtemporal.basics import BadInput
from vlmtemporal.openpack import sessions
from vlmtemporal.operations import Operation, Segment, Taxonomy
from vlmtemporal.sessions import Session
from vlmtemporal.video import open_video, write_video
from vlmtemporal.viewing import Line, SessionView, read_predictions, view

EVIL = ('</script><script>document.title="taken"</script>', '<img src=x onerror=alert(1)>', "'\"><b>&amp;", '<!--',
        '{{ 7*7 }}', '箱を組み立てる', 'תווית', 'ящик 📦', 'Nothing')


class Page(HTMLParser):
    "The elements of a page, and the text inside its scripts."
    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], '', None
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == 'script': self.scripts.append('')
        self.inside = tag
    def handle_endtag(self, tag): self.inside = None
    def handle_data(self, data):
        if self.inside == 'script': self.scripts[-1] += data
        elif self.inside != 'style': self.text += data
    def all(self, name): return [attrs for tag, attrs in self.tags if tag == name]
    @property
    def data(self): return json.loads(self.scripts[0])


def pictures(n, size=(64, 48)):
    "Frames whose brightness tells their number."
    for i in range(n): yield np.full((size[1], size[0], 3), 16 + 2*i, np.uint8)


def made(folder, name='clip.mp4', subject='anna', id='box_1', seconds=4., names=EVIL, fps=25):
    "A session with a recording of `seconds`, a label a second with a hole in the middle."
    path = folder/name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, pictures(round(seconds*fps)), fps)
    taxonomy = Taxonomy('made', tuple(Operation(i, n) for i, n in enumerate(names)), names[-1])
    at = [t for t in np.arange(0, seconds, .5).tolist() if t != 1.5]
    segments = tuple(Segment(names[i % (len(names) - 1)], t, t + .5) for i, t in enumerate(at))
    return Session(subject, id, taxonomy, segments, (), 0., path, folder/'labels.csv')


@pytest.fixture
def some(monkeypatch):
    "Let `view` find these sessions."
    return lambda *found: monkeypatch.setattr(viewing, 'sessions', lambda root, subjects=None: list(found))


def only(out): return next(p for p in out.glob('*.html') if p.name != 'index.html')


def test_a_page_needs_nobody(mock, tmp_path):
    index = view(mock, tmp_path, subjects=('U0108',))
    for path in (index, tmp_path/'U0108-S0100.html'):
        page = Page(path)
        addresses = [a[k] for _, a in page.tags for k in ('src', 'href') if a.get(k)]
        assert not [a for a in addresses if re.match(r'\w+:|//', a)] and not page.all('link')
        for a in addresses: assert (tmp_path/unquote(a)).exists(), a
        assert page.all('meta')[1]['content'].startswith('width=device-width')


def test_what_is_shown_is_what_was_labelled(mock, tmp_path):
    session = sessions(mock, ('U0108',))[0]
    view(mock, tmp_path, subjects=('U0108',))
    data = Page(tmp_path/'U0108-S0100.html').data
    names = [o['name'] for o in data['operations']]
    assert names == list(session.taxonomy.names)
    assert [o['colour'] for o in data['operations']] == [session.taxonomy.colour(n) for n in names]
    rows = data['lines'][0]['segments']
    labelled = [(names[op], start, end) for op, start, end, _, gap in rows if not gap]
    assert labelled == [(s.operation, s.start, s.end) for s in session.segments]
    assert rows[0][1] == 0 and all(a[2] == b[1] for a, b in zip(rows, rows[1:])) and rows[-1][2] == data['duration']


def test_a_page_runs_its_own_script_only(tmp_path, some):
    session = made(tmp_path)
    some(session)
    view(tmp_path, tmp_path/'view', {session.key: [Line(EVIL[0], session.segments[:3])]})
    page = Page(tmp_path/'view'/'anna-box_1.html')
    assert len(page.scripts) == 2 and not page.all('img') and not page.all('b')
    assert [o['name'] for o in page.data['operations']] == list(EVIL), 'every name arrives as it is'
    assert page.data['lines'][1]['name'] == EVIL[0]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.all('meta')[2]['content']
    assert not [a for _, a in page.tags for name in a if name.startswith('on')]
    index = Page(tmp_path/'view'/'index.html')
    assert not index.scripts and not index.all('img') and "script-src 'none'" in index.all('meta')[2]['content']
    for name in {s.operation for s in session.segments}: assert name in page.text and name in index.text


NAMES = 'box 1.mp4', 'a#b?c.mp4', '100%20.mp4', '箱 ü &<b>\'".mp4', 'deep/er/clip.mp4'

@pytest.mark.parametrize('name', NAMES)
def test_the_video_is_found(name, tmp_path, some):
    session = made(tmp_path/'data', name, seconds=1)
    some(session)
    view(tmp_path/'data', tmp_path/'pages'/'here')
    address = Page(tmp_path/'pages'/'here'/'anna-box_1.html').all('video')[0]['src']
    assert '?' not in address and '#' not in address
    assert (tmp_path/'pages'/'here'/unquote(address)).resolve() == session.source


def test_a_copy_is_true_and_kept(tmp_path, some):
    "A browser plays it, and each moment shows what the recording shows then."
    session = made(tmp_path, 'clip.mp4', seconds=4)
    other = tmp_path/'clip.mkv'
    with av.open(str(session.source)) as a, av.open(str(other), 'w') as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(a.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                b.mux(packet)
    some(replace(session, source=other))
    view(tmp_path, tmp_path/'view')
    copy, = (tmp_path/'view'/'videos').glob('*.mp4')
    assert Page(tmp_path/'view'/'anna-box_1.html').all('video')[0]['src'] == f'videos/{copy.name}'
    video, source = open_video(copy), open_video(other)
    assert video.info.codec == 'h264' and abs(video.info.duration - source.info.duration) < .05
    for t in (0., 1., 2.48, 3.9):
        ours, theirs = (v.read(v.nearest([t])).mean() for v in (video, source))
        assert abs(ours - theirs) < 3
    before = copy.stat().st_mtime_ns
    view(tmp_path, tmp_path/'view')
    assert copy.stat().st_mtime_ns == before, 'kept'
    shutil.copy(session.source, other)
    view(tmp_path, tmp_path/'view')
    assert [p.name for p in (tmp_path/'view'/'videos').glob('*.mp4')] != [copy.name], 'another recording, another copy'


@pytest.mark.parametrize('trusted', (True, False))
def test_frames_are_copied(trusted, tmp_path, some):
    from vlmtemporal.video import stamp
    import cv2
    folder = tmp_path/'frames'
    folder.mkdir()
    for i, picture in enumerate(pictures(15)): cv2.imwrite(str(folder/f'{stamp(1e9 + i/15)}.jpg'), picture)
    some(replace(made(tmp_path, seconds=1), source=folder))
    view(tmp_path, tmp_path/'view', trusted=trusted)
    copy, = (tmp_path/'view'/'videos').glob('*.mp4')
    assert open_video(copy).info.n_frames == 15


def test_a_bad_recording_costs_its_own_video_only(tmp_path, some):
    good, bad = made(tmp_path, 'a.mp4', id='a'), made(tmp_path, 'b.mp4', id='b')
    bad.source.write_bytes(b'no video')
    some(good, bad, replace(bad, id='c', source=None))
    view(tmp_path, tmp_path/'view')
    assert Page(tmp_path/'view'/'anna-a.html').all('video')
    for key, why in (('anna-b', 'cannot be decoded'), ('anna-c', 'has no recording')):
        page = Page(tmp_path/'view'/f'{key}.html')
        assert not page.all('video') and why in page.text
    assert 'anna-b, anna-c' in Page(tmp_path/'view'/'index.html').text


def test_embedded(tmp_path, some):
    session = made(tmp_path, seconds=1)
    some(session)
    view(tmp_path, tmp_path/'view', embed=True)
    kind, _, text = Page(tmp_path/'view'/'anna-box_1.html').all('video')[0]['src'].partition(',')
    assert kind == 'data:video/mp4;base64' and base64.b64decode(text) == session.source.read_bytes()


def test_an_id_may_be_index(tmp_path, some):
    some(replace(made(tmp_path, seconds=1), subject='Index', id='Index'))
    index = view(tmp_path, tmp_path/'view')
    assert 'Sessions in' in index.read_text() and Page(index).all('a')[0]['href'] == 'Index_.html'
    assert Page(tmp_path/'view'/'Index_.html').all('video')


def test_notes(tmp_path, some):
    session = made(tmp_path, seconds=2)
    late = Segment(EVIL[0], 2., 3.5)
    some(replace(session, segments=(*session.segments, late)))
    view(tmp_path, tmp_path/'view')
    text = Page(tmp_path/'view'/'anna-box_1.html').text
    assert '1 segment end after the recording, by up to 1.5 s' in text and '3 segments shorter than a second' in text
    assert Page(tmp_path/'view'/'anna-box_1.html').data['duration'] == 3.5


def test_disagreement(tmp_path):
    session = made(tmp_path, seconds=2) # 0-.5, .5-1, 1-1.5, a hole
    a, b, c = session.segments
    late = Line('late', (a, replace(b, end=1.25), replace(c, start=1.25)))
    v = SessionView(session, [Line('same', session.segments), late])
    assert v.agreement == {'same': 1., 'late': pytest.approx(1 - .25/2)}
    assert v.compared[0].stretches == [] and v.compared[1].stretches == [[1., 1.25]]
    assert [(g.start, g.end) for g in v.gaps] == [(1.5, 2.)]
    assert v._repr_png_()[:4] == b'\x89PNG'


def test_an_hour_is_quick(tmp_path, some):
    names = tuple(f'label {i} of many' for i in range(119)) + ('Nothing',)
    session = replace(made(tmp_path, seconds=1, names=names), source=None)
    many = tuple(Segment(names[i*7 % 119], 3.6*i, 3.6*i + 3.5) for i in range(1000))
    some(replace(session, segments=many))
    began = time.monotonic()
    index = view(tmp_path, tmp_path/'view', {session.key: [Line('said', many[:900])]})
    assert time.monotonic() - began < 5 and (tmp_path/'view'/'anna-box_1.html').stat().st_size < 5e5
    assert index.stat().st_size < 2e5


def predicted(folder, session, name='said.json', **changed):
    rows = [dict(operation=s.operation, start=s.start, end=s.end, probability=.5) for s in session.segments]
    path = folder/name
    path.write_text(json.dumps(dict(video=str(session.source), segments=rows) | changed))
    return path


def test_predictions_find_their_session(tmp_path):
    a, b = made(tmp_path/'a', 'x.mp4', id='a', seconds=1), made(tmp_path/'b', 'y.mp4', id='b', seconds=1)
    first, second = predicted(tmp_path, a, 'one.json'), predicted(tmp_path, a, 'two.json', video='/moved/x.mp4')
    assert {k: [x.name for x in v] for k, v in read_predictions([first], [a, b]).items()} == {'anna-a': ['prediction']}
    lines = read_predictions([first, second], [a, b])['anna-a']
    assert [x.name for x in lines] == ['one', 'two'] and lines[0].segments == a.segments
    assert lines[0].probabilities == (.5,)*len(a.segments)
    assert list(read_predictions([predicted(tmp_path, a, 'k.json', video=b.key)], [a, b])) == ['anna-b']


def test_predictions_that_are_none(tmp_path):
    session = made(tmp_path, seconds=1)
    one = dict(operation=EVIL[5], start=0, end=1)
    cases = [(dict(video='other.mp4'), 'no session has the recording'), (dict(segments=5), 'holds no timeline'),
             (dict(segments=[one | dict(operation='Knit')]), "'Knit' is no operation of made"),
             (dict(segments=[one, one]), 'segment 2 overlaps segment 1'),
             (dict(segments=[one | dict(end='nan')]), 'segment 1'),
             (dict(segments=[[]]), 'segment 1: [] is no segment')]
    for changed, what in cases:
        with pytest.raises(BadInput, match=re.escape(what)):
            read_predictions([predicted(tmp_path, session, **changed)], [session])
    (tmp_path/'said.json').write_text('{')
    with pytest.raises(BadInput, match='JSON'): read_predictions([tmp_path/'said.json'], [session])
    twice = [session, replace(session, id='box_2')]
    with pytest.raises(BadInput, match='2 sessions have'):
        read_predictions([predicted(tmp_path, session, video='/moved/clip.mp4')], twice)


def test_the_command(cli, mock, tmp_path):
    session = sessions(mock, ('U0107',))[0]
    said = predicted(tmp_path, session)
    code, out, err = cli('view', mock, '--out', tmp_path/'v', '--only', 'U0107', '--predictions', said)
    assert code == 0 and out.strip() == f'to look at: {tmp_path/"v"/"index.html"}'
    assert Page(tmp_path/'v'/'U0107-S0100.html').data['lines'][1]['caption'] == 'prediction: 100.0% as labelled'
    bad = predicted(tmp_path, session, 'bad.json', segments=[dict(operation='Knit', start=0, end=1)])
    code, out, err = cli('view', mock, '--out', tmp_path/'w', '--predictions', bad)
    assert code == 2 and len(err.splitlines()) == 1 and 'bad.json, segment 1' in err
    assert not (tmp_path/'w').exists()


def browser():
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    return found or pytest.skip('no chromium here')


def test_in_a_browser(tmp_path, some):
    "The script runs, hostile labels do not, and a link with a time opens there."
    program, session = browser(), made(tmp_path)
    some(session)
    view(tmp_path, tmp_path/'view', {session.key: [Line(EVIL[0], session.segments[2:])]})
    address = (tmp_path/'view'/'anna-box_1.html').as_uri() + '#t=2.25'
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync', f'--user-data-dir={tmp_path/"profile"}', '--dump-dom']
    r = subprocess.run([program, *flags, address], capture_output=True, text=True, timeout=60)
    assert 'data-ready="1"' in r.stdout and '<title>anna-box_1</title>' in r.stdout
    assert r.stdout.count('<tr') > len(session.segments) and '0:02.3 / 0:04.0' in r.stdout
