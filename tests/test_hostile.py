"""Files that nobody should send: each is answered or costs its sender one sentence, and nothing stays of it."""
import gc, os, re, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile_files
import pytest
from hostile_files import EITHER, FILES, KINDS, REFUSED, encoded
from test_guard import children

from vlmtemporal.basics import BadInput, VLMTemporalError
from vlmtemporal.engine import UPLOAD_LIMITS, public_message
from vlmtemporal.guard import GuardedVideo, Stop
from vlmtemporal.sampling import sample_clip
from vlmtemporal.sources import Limits
from vlmtemporal.video import open_video

pytestmark = pytest.mark.filterwarnings('ignore::vlmtemporal.basics.VLMTemporalWarning')
CHECK = os.environ.get('VLMTEMPORAL_SERVE_CHECK') == '1'
MIB = 2**20


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('hostile')


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    "The children find the decoders that misbehave."
    here = str(Path(__file__).parent)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [here, os.environ.get('PYTHONPATH')])))


def sampled(path, **how): return sample_clip(open_video(path, limits=UPLOAD_LIMITS, trusted=False, **how))


def none_left(before: set[int]) -> bool:
    "Is there no process but those, soon?"
    gc.collect()
    deadline = time.monotonic() + 5
    while children() - before and time.monotonic() < deadline: time.sleep(.05)
    return not children() - before


def check_sentence(error: BadInput, path: Path):
    said = public_message(error)
    assert said.isprintable() and 10 < len(said) < 400 and str(path.parent) not in said, said
    assert not any(word in said for word in ('.c:', '.cc', '.cpp', 'Traceback', 'AVERROR', 'avcodec', '0x')), said


def test_there_are_sixty(): assert len(FILES) >= 60 and not (KINDS & REFUSED or EITHER & (KINDS | REFUSED))


def test_every_file_is_answered_or_refused_in_a_sentence(folder):
    "Four at once, as a server decodes them; afterwards standard error is where it was and nothing is left."
    def become(name):
        path, begin = FILES[name](folder), time.monotonic()
        try: shown, said = sampled(path).frames.shape, None
        except BadInput as e:
            shown, said = None, str(e)
            check_sentence(e, path)
        return name, shown, said, time.monotonic() - begin
    stderr, before = os.fstat(2), children()
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(become, FILES))
    wrong = [(name, shown, said) for name, shown, said, _ in found
             if name not in EITHER | KINDS and (said is None) == (name in REFUSED)]
    assert not wrong
    assert not [(name, seconds) for name, _, _, seconds in found if seconds > 60]
    assert all(shown[1:] == (336, 336, 3) and 1 <= shown[0] <= 8 for _, shown, _, _ in found if shown)
    assert os.path.samestat(stderr, os.fstat(2)), 'standard error leads elsewhere'
    assert none_left(before)


@pytest.mark.parametrize('name', ['a\0b.mp4', '\0', 'x'*4096, '../'*20 + 'etc/passwd', '\u202e4pm.pilc', 'a\nb.mp4'])
def test_names_that_cannot_be(name, tmp_path):
    with pytest.raises(BadInput) as caught: open_video(tmp_path/'absent'/name, trusted=False)
    assert str(caught.value).isprintable()


MEASURE = """
import os, sys, threading, warnings
from pathlib import Path
warnings.simplefilter('ignore')
from vlmtemporal.basics import BadInput
from vlmtemporal.frames import FrameSpec, cut_frames
from vlmtemporal.sampling import sample_clip
from vlmtemporal.sources import Limits
from vlmtemporal.video import open_video

def family():
    todo, found = [os.getpid()], []
    while todo:
        found.append(p := todo.pop())
        try: todo += [int(c) for t in Path(f'/proc/{p}/task').iterdir() for c in (t/'children').read_text().split()]
        except OSError: pass
    return found

def pss(p):
    try: lines = Path(f'/proc/{p}/smaps_rollup').read_text().splitlines()
    except OSError: return 0
    return next((int(line.split()[1]) for line in lines if line.startswith('Pss:')), 0)/1024

def total(): return sum(map(pss, family()))

class Clip:
    n_frames = 125
    def __init__(self, start): self.id, self.start = str(start), float(start)

def work(path, whole):
    video = open_video(path, limits=Limits(*map(int, sys.argv[1].split(','))), trusted=False)
    if not whole: return sample_clip(video)
    for _ in cut_frames(video, [Clip(s) for s in range(int(video.info.duration) - 4)]): pass

sample_clip(open_video(sys.argv[2]))
try: work(sys.argv[2], False)
except BadInput: pass
base, peak, over = total(), [0.], threading.Event()
def watch():
    while not over.wait(.02): peak[0] = max(peak[0], total())
watcher = threading.Thread(target=watch)
watcher.start()
said = 'answered'
try: work(sys.argv[3], sys.argv[4] == 'whole')
except BadInput as e: said = e.what
over.set()
watcher.join()
print(peak[0] - base, said, sep='|')
"""

def measured(path: Path, small: Path, whole: bool = False, limits: Limits = UPLOAD_LIMITS) -> tuple[float, str]:
    "MiB that a request takes at most, in all processes together, over what they have before; and what became of it."
    numbers = ','.join(str(v) for v in (limits.pixels, limits.frames, limits.seconds, limits.memory, limits.time))
    command = [sys.executable, '-c', MEASURE, numbers, str(small), str(path), 'whole' if whole else 'clip']
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    mib, said = out.strip().split('|')
    return float(mib), said


GREY = dict(kind='color', seconds='1')
def x264(more: str) -> tuple: return (*hostile_files.X264, '-x264-params', more)
def large(*how: str, **more) -> dict: return dict(size='3840x2160', how=('-c:v', *how)) | GREY | more
X265 = 'libx265', '-preset', 'ultrafast', '-pix_fmt'

LARGE = {'4096x4096, 16 references': (dict(size='4096x4096', how=x264('ref=16'), **GREY), 'memory'),
         '3840x2160': (dict(size='3840x2160', how=x264('ref=5:bframes=3'), **GREY), 'answered')}
LONGER = {'4096x4096': (dict(size='4096x4096', how=x264('ref=1'), **GREY), 'answered'),
          '7680x4320': (dict(size='7680x4320', **GREY | dict(seconds='0.2')), 'pixels'),
          '1920x1080': (dict(size='1920x1080', how=x264('ref=16:bframes=3'), **GREY | dict(seconds='2')), 'answered'),
          '3840x2160, 10 s': (dict(size='3840x2160', seconds='10'), 'answered'),
          '1920x1080, 10 s': (dict(size='1920x1080', seconds='10'), 'answered'),
          '1000 fps': (dict(size='640x480', rate='1000', seconds='6'), 'answered'),
          '8 h': (dict(size='64x64', rate='1', seconds='28800', kind='color'), 'answered'),
          'many frames': (dict(size='16x16', rate='100', seconds='6500', kind='color'), 'frames'),
          'HEVC': (large(*X265, 'yuv420p'), 'answered'),
          'HEVC, 10 bits': (large(*X265, 'yuv420p10le'), 'answered'),
          'VP9': (large('libvpx-vp9', '-deadline', 'realtime', '-cpu-used', '8', out='a.webm'), 'answered'),
          'AV1': (large('libsvtav1', '-preset', '12'), 'answered'),
          'MJPEG': (large('mjpeg', '-pix_fmt', 'yuvj420p', out='a.mov'), 'answered'),
          'ProRes': (large('prores_ks', '-profile:v', '4', '-pix_fmt', 'yuva444p10le', out='a.mov', rate='5'),
                     'answered'),
          'PNG': (large('png', '-pix_fmt', 'rgba', out='a.mov', rate='5'), 'answered'),
          'PNG, 16 bits': (large('png', '-pix_fmt', 'rgba64be', out='a.mov', rate='2', size='4096x4096'), 'memory')}
WORDS = dict(memory='needs more than .* MiB of memory', pixels='more than the limit of 16.8 million pixels',
             frames='more than 600,000 frames')


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='only Linux says what a process has')
@pytest.mark.parametrize('name', [*LARGE, *(LONGER if CHECK else ())])
def test_no_video_takes_more_than_300_mib(name, folder):
    recipe, becomes = (LARGE | LONGER)[name]
    path, small = folder/f'{name} {recipe.get("out", "a.mp4")}', FILES['plain.mp4'](folder)
    path.write_bytes(encoded(**recipe))
    mib, said = measured(path, small)
    print(f'{name}: {path.stat().st_size:,} bytes, {mib:.0f} MiB, {said}')
    assert mib <= 300 and re.search(WORDS.get(becomes, becomes), said), (mib, said)


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='only Linux says what a process has')
def test_a_whole_video_takes_no_more(folder):
    "Its frames shrink as they come."
    path, small = folder/'whole.mp4', FILES['plain.mp4'](folder)
    path.write_bytes(encoded(size='704x576', seconds='12'))
    mib, said = measured(path, small, whole=True)
    assert mib <= 200 and said == 'answered', (mib, said)


def test_limits_are_named(folder):
    path = FILES['plain.mp4'](folder)
    for limits, words in ((Limits(pixels=1000), '160x120, more than the limit of 0.001 million pixels'),
                          (Limits(frames=100), 'more than 100 frames'), (Limits(seconds=3), 'more than the limit of'),
                          (Limits(memory=2**20), 'more than 1 MiB of memory')):
        with pytest.raises(BadInput, match=words): open_video(path, limits=limits, trusted=False)


@pytest.mark.parametrize('name', ['hangs', 'spins', 'LateHang'])
def test_whoever_has_gone_leaves_no_child_at_work(name, folder, monkeypatch):
    "The process that decodes is killed at once, whether it opens the file or reads it; nobody starts another one."
    monkeypatch.setattr(GuardedVideo, 'decoder', f'misbehaving:{name}')
    path, stop, said = FILES['plain.mp4'](folder), Stop(), []
    def request():
        try: sampled(path, stop=stop)
        except VLMTemporalError as e: said.append(str(e))
    before = children()
    thread = threading.Thread(target=request)
    thread.start()
    time.sleep(3)
    assert thread.is_alive()
    begin = time.monotonic()
    stop()
    thread.join(10)
    assert not thread.is_alive() and time.monotonic() - begin < 2 and 'closed' in said[0]
    assert none_left(before)
    with pytest.raises(BadInput, match='closed'): sampled(path, stop=stop)


@pytest.fixture(scope='module')
def engine():
    from vlmtemporal.engine import Engine
    engine = Engine('tiny', 'none')
    yield engine
    engine.close()


def test_a_ticket_that_is_late_kills_its_child(folder, monkeypatch, engine):
    from vlmtemporal.batching import Late
    monkeypatch.setattr(GuardedVideo, 'decoder', 'misbehaving:spins')
    before, begin = children(), time.monotonic()
    with pytest.raises(Late), engine.place(3.) as ticket: engine.sample_upload(FILES['plain.mp4'](folder), 0., ticket)
    assert time.monotonic() - begin < 10
    assert none_left(before)


@pytest.fixture(scope='module')
def server(tmp_path_factory, engine):
    "The API in this process, and the folder in which uploads lie."
    from fastapi.testclient import TestClient

    from vlmtemporal.api import create_app
    from vlmtemporal.intake import ServerFolder
    rooms = ServerFolder(tmp_path_factory.mktemp('server'))
    with TestClient(create_app(engine, folder=rooms), raise_server_exceptions=False) as client: yield client, rooms.path


FEW = ['notes.mp4', 'list.m3u8', 'picture_png.mp4', 'clip.srt', 'archive.mp4', 'empty.mp4', 'sound.mp4', 'sound.wav',
       'no_frames.mp4', 'many_stts.mp4', 'huge_header.mkv', 'cut_5_end.mp4', 'cut_5.mp4', 'bits_2.ts', '1x1.avi',
       'sizes.ts', 'plain.mp4']

@pytest.mark.parametrize('route', ['/predict', '/analyze'])
def test_every_file_gets_an_http_answer(route, server, folder):
    "No 500, the right status, one sentence; the next is answered and nothing stays on the disk."
    client, rooms = server
    def become(name):
        data = FILES[name](folder).read_bytes()
        answer = client.post(route, files={'video': (name, data)}, data=dict(stride=3.) if route == '/analyze' else {})
        return name, answer.status_code, answer.json()
    names = list(FILES) if CHECK else FEW if route == '/predict' else FEW[::4]
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(become, names))
    wrong = [(name, status, said) for name, status, said in found if status not in (
        [415] if name in KINDS else [422] if name in REFUSED else [200, 415, 422] if name in EITHER else [200])]
    assert not wrong
    for name, status, said in found:
        if status == 200: continue
        assert list(said) == ['detail'] and said['detail'].isprintable() and '/' not in said['detail'], (name, said)
    assert client.get('/livez').status_code == 200
    assert not [p for p in rooms.rglob('*') if p.is_file()]


@pytest.mark.parametrize('name', ['a\0b.mp4', '../'*20 + 'etc/passwd', 'x'*4096 + '.mp4', '\u202e4pm.pilc.mp4', '',
                                  '-i', 'a\r\nX-Header: 1.mp4', 'http://127.0.0.1/a.mp4', 'list.m3u8', '"quoted".mp4'])
def test_a_name_that_is_sent_says_nothing(name, server):
    client, rooms = server
    answer = client.post('/predict', files={'video': (name, encoded())})
    assert answer.status_code in ((400, 422) if not name else (200, 400, 422)), answer.text
    assert len(answer.content) < 5000 and 'passwd' not in answer.text and 'X-Header' not in str(answer.headers)
    assert not [p for p in rooms.rglob('*') if p.is_file()]


def test_the_page_chooses_the_frames_of_a_clip_once(folder, monkeypatch, engine):
    from vlmtemporal import app, engine as module
    times, sample = [], module.sample_clip
    def counted(*args, **more):
        times.append(args)
        return sample(*args, **more)
    monkeypatch.setattr(module, 'sample_clip', counted)
    with engine.place() as ticket: assert list(app.show_clip(engine, ticket, FILES['plain.mp4'](folder)))
    assert len(times) == 1
    for name in ('picture_png.mp4', 'notes.mp4', 'list.m3u8'):
        for show in (app.show_clip, app.show_video):
            with engine.place() as ticket, pytest.raises(BadInput, match='holds no video but'):
                list(show(engine, ticket, FILES[name](folder)))
