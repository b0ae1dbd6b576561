"""Chapter 0's speed and memory: what scoring costs beside decoding, and what one pass over a session saves.

    python bench/sampling.py [--runs 5] [--only speed,counting,clips,memory,sizes]

Every table is measured in one run, the rows of a table in turn, so that a drift of the machine's speed meets all of
them; a row shows the median over the runs. The bound that a row must hold stands beside it; the exit code is 1 when
one does not.
"""
import argparse, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from vlmtemporal.clips import session_clips
from vlmtemporal.frames import FrameSpec, clip_grid, cut_frames
from vlmtemporal.openpack import annotation_path, sessions, write_annotation
from vlmtemporal.operations import LOGISTICS, Segment
from vlmtemporal.samplers import get_sampler
from vlmtemporal.sampling import sample_clip
from vlmtemporal.scores import Scorer, entropy, score_video
from vlmtemporal.twin import make_twin, mock_data
from vlmtemporal.video import ffmpeg, open_video, stamp

failed = []
SCORED = 'entropy', 'entropy-small'
SPECIFIED = FrameSpec('entropy')


def in_turn(work: dict, runs: int, once: tuple = ()) -> dict:
    "Median seconds of each piece of work; of what takes minutes and whose ratio is not close, one run."
    taken = {name: [] for name in work}
    for n in range(runs):
        for name, f in work.items():
            if n and name in once: continue
            begin = time.perf_counter()
            f()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(t) for name, t in taken.items()}


def table(title, head, rows):
    print(f'\n{title}\n\n| {" | ".join(head)} |\n| {" | ".join("---" for _ in head)} |')
    for row in rows: print(f'| {" | ".join(row)} |', flush=True)


def bound(what, value, least=None, most=None) -> str:
    "The bound as text; remembers what does not hold."
    if (least is not None and value < least) or (most is not None and value > most): failed.append(what)
    return f'>= {least}' if least is not None else f'<= {most}' if most is not None else ''


def with_opencv(path):
    "A loop that only decodes, as a user would write it."
    cap = cv2.VideoCapture(path)
    while (got := cap.read())[0]: cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB)

def with_pyav(path):
    "The same with PyAV, its own way."
    with av.open(path) as container:
        for frame in container.decode(video=0): frame.to_ndarray(format='rgb24')


def speed(video, runs):
    path = video.info.path
    loops = {'only decode, OpenCV': lambda: with_opencv(path), 'only decode, PyAV': lambda: with_pyav(path),
             'only decode, `Video.blocks`': lambda: [None for _ in video.blocks()]}
    scored = {f'decode and score: {n}': lambda n=n: score_video(video, (n,)) for n in
                                                               ('entropy', 'entropy-small', 'novelty', 'flow')}
    took = in_turn(loops | scored, runs)
    base = min(took[n] for n in loops)
    i = video.info
    least = {'decode and score: entropy': .95, 'decode and score: entropy-small': .95, 'decode and score: flow': .3}
    table(f'Scoring a session of {i.n_frames} frames of {i.width}x{i.height}, median of {runs} runs',
          ('work', 'frames/s', 'share of the fastest loop that only decodes', 'must be'),
          [(n, f'{len(video)/s:.0f}', f'{base/s:.2f}', bound(f'{n} at {i.width}x{i.height}', base/s, least.get(n)))
           for n, s in took.items()])


def counting(runs):
    "Processor time of a frame's entropy, on all its pixels and on a thumbnail, least of many."
    frame = np.ascontiguousarray(sessions(mock_data(), ('U0108',))[0].open().read([300])[0])
    rows = []
    for size in ((640, 480), (1280, 720)):
        picture, taken = cv2.resize(frame, size), {'entropy': [], 'entropy-small': []}
        for _ in range(20*runs):
            for n, found in taken.items():
                scorer, begin = Scorer(n, bgr=True), time.process_time()
                scorer(picture)
                found.append(time.process_time() - begin)
        rows.append((f'{size[0]}x{size[1]}', *(f'{1e3*min(t):.2f}' for t in taken.values())))
    table('Entropy of one decoded frame, ms of one core', ('frame', *SCORED), rows)


def clips(runs):
    "All clips of a session: one pass, against a loop over clips that decodes and scores each at full size."
    session = sessions(mock_data(), ('U0108',))[0]
    video = session.open()
    wanted = session_clips(session, video.info.duration)
    select = get_sampler('entropy')
    def numpy_entropy(frame):
        grey = np.dot(frame, [.299, .587, .114]).astype(np.uint8)
        p = np.histogram(grey, bins=256, range=(0, 256))[0]/grey.size
        return -(p[p > 0]*np.log2(p[p > 0])).sum()
    def pil_entropy(frame): return Image.fromarray(frame).convert('L').entropy()
    def one_by_one(score):
        for c in wanted:
            v = open_video(video.info.path)
            frames = v.read(clip_grid(v, c.start))
            at = select(np.array([score(f) for f in frames], np.float32))
            [Image.fromarray(f).resize((336, 336)) for f in frames[at]]
    took = in_turn({'one pass (`cut_frames`)': lambda: list(cut_frames(video, wanted, SPECIFIED)),
                    'clip by clip at full size, PIL histogram': lambda: one_by_one(pil_entropy),
                    'clip by clip at full size, numpy histogram': lambda: one_by_one(numpy_entropy)}, runs,
                   once=('clip by clip at full size, numpy histogram',))
    base = took['one pass (`cut_frames`)']
    table(f'All {len(wanted)} clips that `build` cuts from a session of {video.info.duration:.0f} s, '
          f'median of {runs} runs, numpy one',
          ('work', 'seconds', 'times one pass', 'must be'),
          [(n, f'{s:.2f}', f'{s/base:.1f}', bound(n, s/base, 10 if 'full size' in n else None))
           for n, s in took.items()])
    same, near = {n: [] for n in ('entropy', 'entropy-small')}, []
    for c in wanted:
        grid = clip_grid(video, c.start)
        full = select(np.array([entropy(f) for f in video.read(grid)]))
        for n, found in same.items():
            chosen = sample_clip(video, c.start, FrameSpec(n)).indices
            found.append(len(set(chosen.tolist()) & set(full.tolist()))/8)
            if n == 'entropy-small': near += [np.abs(full - i).min() <= 3 for i in chosen]
    table('Against the definition on the full picture, the same clips', ('', 'share', 'must be'),
          [('frames of `entropy` that are the definition\'s', f'{np.mean(same["entropy"]):.3f}',
            bound('exactness', np.mean(same['entropy']), 1)),
           ('frames of `entropy-small` that are', f'{np.mean(same["entropy-small"]):.3f}', ''),
           ('frames of `entropy-small` within 3 frames of one', f'{np.mean(near):.3f}',
            bound('agreement', np.mean(near), .9))])


def memory():
    "Peak memory of a process that scores a one-hour session, above what its imports take."
    with tempfile.TemporaryDirectory() as folder:
        source, hour = sessions(mock_data(), ('U0108',))[0].source, Path(folder)/'hour.mp4'
        command = [ffmpeg(), '-v', 'error', '-stream_loop', '-1', '-i', source, '-t', '3600', '-c', 'copy', hour]
        subprocess.run(command, check=True)
        program = '\n'.join([
            'import re, sys',
            'from pathlib import Path',
            'from vlmtemporal.scores import score_video',
            'from vlmtemporal.video import open_video',
            'kb = lambda what: int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])',
            'before = kb("VmRSS")',
            'n = len(score_video(open_video(sys.argv[1]), (sys.argv[2],))[sys.argv[2]])',
            'print(n, (kb("VmHWM") - before)/1024)'])
        rows = []
        for score in ('entropy', 'entropy-small', 'novelty'):
            begin = time.perf_counter()
            command = [sys.executable, '-c', program, hour, score]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            n, mb = run.stdout.split()
            rows.append((score, n, f'{time.perf_counter() - begin:.0f}', f'{float(mb):.0f}',
                         bound(f'memory of {score}', float(mb), most=400)))
        table('Scoring one hour of 640x480', ('score', 'frames', 'seconds', 'MB above the imports', 'must be'), rows)


SIZES = {'480p': (854, 480), '720p': (1280, 720), '1080p': (1920, 1080), '4K': (3840, 2160), '8K': (7680, 4320)}
FILES = { # name -> FFmpeg's source, seconds, frames from one key frame to the next
    **{f'{name}, 25 frames/s': (f'testsrc2=s={w}x{h}:r=25', 6, 250) for name, (w, h) in SIZES.items()},
    **{f'320x240, {rate} frames/s': (f'testsrc2=s=320x240:r={rate}', 12, 250) for rate in (1, 25, 240, 1000)},
    '4096x4096 of one grey, 60 kB': ('color=gray:s=4096x4096:r=25', 6, 250)}
PEAK = '''
import re, sys, warnings
from pathlib import Path
warnings.simplefilter('ignore')
def kb(what): return int(re.search(what + r":\\s+(\\d+)", Path('/proc/self/status').read_text())[1])
video, root = sys.argv[1:]
{prepare}
before = kb('VmRSS')
Path('/proc/self/clear_refs').write_text('5') # the peak so far was that of the imports
{work}
print((kb('VmHWM') - before)/1024)
'''
WORK = { # name -> (what is imported and loaded before, what is measured)
    'sample': ('from vlmtemporal.sampling import sample_clip\nfrom vlmtemporal.video import open_video\n'
               'from vlmtemporal.frames import FrameSpec',
               'sample_clip(open_video(video), .5, FrameSpec("entropy"))'),
    'build': ('from vlmtemporal.dataset import build\nfrom vlmtemporal.frames import FrameSpec',
              'build(root, root + "/shards", spec=FrameSpec("entropy"))'),
    'analyze': ('from vlmtemporal.engine import Engine\nengine = Engine("tiny")', 'engine.analyze(video)')}


def made_session(folder, source, seconds, group):
    "A data set of one recording: half of it one operation, half of it another. Returns the recording."
    video = folder/'U0101/kinect/color-masked/videos/S0100'/f'{stamp(0)}.mp4'
    video.parent.mkdir(parents=True)
    encode = ['-c:v', 'libx264', '-preset', 'ultrafast', '-g', group, '-pix_fmt', 'yuv420p', '-threads', 2]
    command = [ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i', source, '-t', seconds, *encode, video]
    subprocess.run([*map(str, command)], check=True)
    halves = [Segment('Tape', 0, seconds/2), Segment('Pack', seconds/2, seconds)]
    table_of = annotation_path(folder, 'U0101', 'S0100')
    write_annotation(table_of, 'U0101', 'S0100', [(1, s) for s in halves], 0., LOGISTICS)
    return video


def sizes():
    "Peak memory of a process above its imports, by size and rate of a recording of a few seconds."
    rows = []
    for name, (source, seconds, group) in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            video, row = made_session(Path(folder), source, seconds, group), [name]
            for work, (prepare, measured) in WORK.items():
                program = PEAK.format(prepare=prepare, work=measured)
                command = [sys.executable, '-c', program, video, folder]
                run = subprocess.run(command, capture_output=True, text=True)
                mb = float(run.stdout.split()[-1]) if not run.returncode else None
                if mb is None: print(run.stderr[-300:], file=sys.stderr)
                elif not name.startswith('8K'): bound(f'memory of {work}, {name}', mb, most=400)
                row.append('-' if mb is None else f'{mb:.0f}')
        rows.append((*row, '' if name.startswith('8K') else '<= 400'))
    table('Peak memory, MB above the imports (and the small model)', ('recording', *WORK, 'must be'), rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--only', default='speed,counting,clips,memory,sizes')
    a = p.parse_args()
    only = a.only.split(',')
    print(f'{os.cpu_count()} cores, {time.strftime("%Y-%m-%d")}')
    if 'speed' in only:
        speed(sessions(mock_data(), ('U0108',))[0].open(), a.runs)
        with tempfile.TemporaryDirectory() as folder:
            speed(sessions(make_twin(Path(folder)/'wide', subjects=1, boxes=2, size=(1280, 720)))[0].open(), a.runs)
    if 'counting' in only: counting(a.runs)
    if 'clips' in only: clips(min(a.runs, 3))
    if 'memory' in only: memory()
    if 'sizes' in only: sizes()
    if failed: sys.exit(f'\ndoes not hold: {"; ".join(failed)}')


if __name__ == '__main__': main()
