"""Files with random bytes changed, read through the guard: each gives frames or a sentence, the parent does not grow.

    python bench/fuzz.py [--files 20000] [--seed 0] [--keep FOLDER]

Small files of several containers and codecs are made with FFmpeg; each round takes one, changes some of its bytes, cuts
it short, or doubles a piece of it, and reads it whole and by random access. One child serves many files, as no server
would have it: a child that has read a stranger's file is not to be trusted with another's. The exit code is 1 when
something else than `BadInput` came out, or when memory, descriptors or processes grew. What did is kept with `--keep`.
"""
import argparse, collections, os, resource, subprocess, sys, tempfile, time, warnings
from pathlib import Path

import numpy as np

from vlmtemporal.basics import BadInput, rng
from vlmtemporal.guard import _Frames
from vlmtemporal.sources import Limits
from vlmtemporal.video import ffmpeg

KINDS = {'h264.mp4': '-c:v libx264 -pix_fmt yuv420p -g 12', 'hevc.mkv': '-c:v libx265 -x265-params log-level=none',
         'mpeg4.avi': '-c:v mpeg4 -bf 2', 'h264.ts': '-c:v libx264 -pix_fmt yuv420p -g 12',
         'vp9.webm': '-c:v libvpx-vp9', 'mpeg2.mpg': '-c:v mpeg2video -bf 2', 'mjpeg.mov': '-c:v mjpeg',
         'wmv.wmv': '-c:v wmv2'}
LIMITS = Limits(pixels=2**22, frames=10_000, memory=2**29, time=20)


def originals(folder: Path) -> dict[str, bytes]:
    "A whole file of every kind, 30 frames of 96x64."
    source = ['-f', 'lavfi', '-i', 'testsrc2=s=96x64:r=25', '-frames:v', '30']
    for name, how in KINDS.items():
        command = [ffmpeg(), '-v', 'quiet', '-y', *source, *how.split(), '-threads', '1', str(folder/name)]
        subprocess.run(command, check=True)
    return {name: (folder/name).read_bytes() for name in KINDS}


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    "Some bytes changed, most often a few; sometimes the head only; sometimes cut short or with a piece twice."
    changed = np.frombuffer(data, np.uint8).copy()
    reach = len(data) if random.random() < .6 else min(len(data), 1000)
    at = random.integers(0, reach, 1 + int(random.exponential(20)))
    extreme = random.random() < .3
    changed[at] = random.choice([0, 1, 127, 128, 255], len(at)) if extreme else random.integers(0, 256, len(at))
    out = changed.tobytes()
    if random.random() < .1: out = out[:int(random.integers(1, len(out)))]
    if random.random() < .1:
        a, b = sorted(random.integers(0, len(out), 2).tolist())
        out = out[:b] + out[a:b] + out[b:]
    return out


class Reader:
    "Reads many files with one child, with another when that one has ended."
    def __init__(self, limits: Limits = LIMITS):
        self.limits, self.child = limits, None
        self.starts = 0
    def ready(self, path: Path) -> _Frames:
        "A child that waits."
        if self.child is None or self.child.over.is_set():
            self.child = _Frames(path, self.limits, 'vlmtemporal.decoding:VideoFile')
            self.child.ready = self.child.receive() is not None
            self.starts += 1
        self.child.path = path
        return self.child
    def read(self, path: Path, random: np.random.Generator) -> int:
        "Read it whole and five frames of it; how many frames it has. Raises `BadInput`."
        child = self.ready(path)
        child.ask('open', path=str(path), whole=False)
        info, times = child.describe()
        frame, out = info.width*info.height*3, np.empty(0, np.uint8)
        picks = random.integers(0, len(times), 5).tolist()
        jobs = [(len(times), 'blocks', dict(enough=None, first=0, stop=len(times))),
                (5, 'read', dict(indices=picks, size=None, enough=32))]
        for count, ask, rest in jobs:
            for shape, at in child.frames(count, frame, ask, **rest):
                out = np.empty(shape, np.uint8)
                child.memory.read_into(out, at)
        return len(times)
    def close(self):
        if self.child: self.child.close()


def state() -> tuple[float, int]:
    "MB that this process has in memory, and its open descriptors."
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages*resource.getpagesize()/1e6, len(os.listdir('/proc/self/fd'))


def fuzz(files: int, seed: int = 0, keep: Path | None = None, tell=lambda n, found: None) -> tuple:
    "What came out of so many damaged files, counted, and what should not have."
    found, wrong, reader = collections.Counter(), [], Reader()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole, path, begin = originals(Path(folder)), Path(folder)/'upload', None
        for n in range(files):
            name = list(whole)[n % len(whole)]
            random = rng('fuzz', seed, n)
            path.write_bytes(damaged(whole[name], random))
            try: found['frames' if reader.read(path, random) else 'none'] += 1
            except BadInput as e: found[e.what] += 1
            except Exception as e:
                wrong.append(f'file {n}, {name}: {type(e).__name__}: {e}')
                if keep: (keep/f'{n}-{name}').write_bytes(path.read_bytes())
            if n == min(200, files//2): begin = state()
            if n % 500 == 499: tell(n + 1, found)
        end = state()
        reader.close()
    found['children'] = reader.starts
    if begin and end[0] > begin[0] + 30: wrong.append(f'memory grew from {begin[0]:.0f} to {end[0]:.0f} MB')
    if begin and end[1] > begin[1]: wrong.append(f'descriptors grew from {begin[1]} to {end[1]}')
    return found, wrong


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--files', type=int, default=20_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', type=Path)
    a = parser.parse_args()
    if a.keep: a.keep.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    def tell(n, found):
        print(f'{n} files in {time.perf_counter() - start:.0f} s: {found["frames"]} gave frames', flush=True)
    found, wrong = fuzz(a.files, a.seed, a.keep, tell)
    for what, n in found.most_common(): print(f'{n:7} {what}')
    for line in wrong: print(f'WRONG {line}')
    sys.exit(bool(wrong))
