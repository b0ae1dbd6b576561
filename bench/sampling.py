"""Chapter 0's speed and memory: what scoring costs beside decoding, and what one pass over a session saves.

    python bench/sampling.py [--runs 5] [--only speed,clips,memory]

Every table is measured in one run, the rows of a table in turn, so that a drift of the machine's speed meets all of
them; a row shows the median over the runs. The bound that a row must hold stands beside it; the exit code is 1 when
one does not.
"""
import argparse, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vlmtemporal.clips import session_clips
from vlmtemporal.frames import clip_grid, cut_frames
from vlmtemporal.openpack import sessions
from vlmtemporal.samplers import get_sampler
from vlmtemporal.sampling import sample_clip
from vlmtemporal.scores import entropy, score_video
from vlmtemporal.twin import make_twin, mock_data
from vlmtemporal.video import ffmpeg, open_video

failed = []


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

def with_decord(path):
    "The same with decord, where there is one."
    import decord
    video = decord.VideoReader(path, num_threads=1)
    for i in range(0, len(video), 16): video.get_batch(range(i, min(i + 16, len(video)))).asnumpy()


def speed(video, runs):
    path = video.info.path
    loops = {'only decode, OpenCV': lambda: with_opencv(path), 'only decode, decord': lambda: with_decord(path),
             'only decode, `Video.blocks`': lambda: [None for _ in video.blocks()]}
    if video.info.backend != 'decord': del loops['only decode, decord']
    scored = {f'decode and score: {n}': lambda n=n: score_video(video, (n,)) for n in ('entropy', 'novelty', 'flow')}
    took = in_turn(loops | scored, runs)
    base = min(took[n] for n in loops)
    i = video.info
    least = {'decode and score: entropy': .95, 'decode and score: flow': .3}
    table(f'Scoring a session of {i.n_frames} frames of {i.width}x{i.height}, median of {runs} runs',
          ('work', 'frames/s', 'share of the fastest loop that only decodes', 'must be'),
          [(n, f'{len(video)/s:.0f}', f'{base/s:.2f}', bound(f'{n} at {i.width}x{i.height}', base/s, least.get(n)))
           for n, s in took.items()])


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
    took = in_turn({'one pass (`cut_frames`)': lambda: list(cut_frames(video, wanted)),
                    'clip by clip at full size, PIL histogram': lambda: one_by_one(pil_entropy),
                    'clip by clip at full size, numpy histogram': lambda: one_by_one(numpy_entropy)}, runs,
                   once=('clip by clip at full size, numpy histogram',))
    base = took['one pass (`cut_frames`)']
    table(f'All {len(wanted)} clips that `build` cuts from a session of {video.info.duration:.0f} s, '
          f'median of {runs} runs, numpy one',
          ('work', 'seconds', 'times one pass', 'must be'),
          [(n, f'{s:.2f}', f'{s/base:.1f}', bound(n, s/base, 10 if 'full size' in n else None))
           for n, s in took.items()])
    near = []
    for c in wanted:
        grid = clip_grid(video, c.start)
        full = select(np.array([entropy(f) for f in video.read(grid)], np.float32))
        near += [np.abs(full - i).min() <= 3 for i in sample_clip(video, c.start).indices]
    table('Thumbnails against the definition on the full picture, the same clips', ('', 'share', 'must be'),
          [('picks of `entropy` within 3 frames of a pick at full size', f'{np.mean(near):.3f}',
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
            'import decord',
            'kb = lambda what: int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])',
            'before = kb("VmRSS")',
            'n = len(score_video(open_video(sys.argv[1]), (sys.argv[2],))[sys.argv[2]])',
            'print(n, (kb("VmHWM") - before)/1024)'])
        rows = []
        for score in ('entropy', 'novelty'):
            begin = time.perf_counter()
            command = [sys.executable, '-c', program, hour, score]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            n, mb = run.stdout.split()
            rows.append((score, n, f'{time.perf_counter() - begin:.0f}', f'{float(mb):.0f}',
                         bound(f'memory of {score}', float(mb), most=400)))
        table('Scoring one hour of 640x480', ('score', 'frames', 'seconds', 'MB above the imports', 'must be'), rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--only', default='speed,clips,memory')
    a = p.parse_args()
    only = a.only.split(',')
    print(f'{os.cpu_count()} cores, {time.strftime("%Y-%m-%d")}')
    if 'speed' in only:
        speed(sessions(mock_data(), ('U0108',))[0].open(), a.runs)
        with tempfile.TemporaryDirectory() as folder:
            speed(sessions(make_twin(Path(folder)/'wide', subjects=1, boxes=2, size=(1280, 720)))[0].open(), a.runs)
    if 'clips' in only: clips(min(a.runs, 3))
    if 'memory' in only: memory()
    if failed: sys.exit(f'\ndoes not hold: {"; ".join(failed)}')


if __name__ == '__main__': main()
