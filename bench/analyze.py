"""A whole video, from the file to its segments: how much faster than it was recorded?

    python bench/analyze.py VIDEO [TOKENIZER] [--model FOLDER] [--stride 1] [--batch 8] [--bound 10]

On a GPU: Qwen2.5-VL-3B's architecture with random weights (they cost the same as trained ones; TOKENIZER is a folder
with the real tokenizer), or any checkpoint; with random weights the segments mean nothing, the time does. On a CPU
without a checkpoint: `tiny`. Decoding, choosing and encoding frames, answering and writing the account are all in the
time; the model is loaded before and warmed up with one clip. A long video: ffmpeg -stream_loop 8 -i
mock_data/U0108/.../S0100/*.mp4 -t 600 -vf scale=640:480 ten.mp4. The exit code is 1 when it takes longer than the bound
allows.
"""
import argparse, platform, tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from sampling import bound, failed, table
from train import full_size
from vlmtemporal.engine import Engine
from vlmtemporal.operations import LOGISTICS, Grammar, Segment
from vlmtemporal.timeline import TimelinePrior
from vlmtemporal.video import open_video


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('video')
    p.add_argument('tokenizer', type=Path, nargs='?')
    p.add_argument('--model')
    p.add_argument('--stride', type=float, default=1.)
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--bound', type=float, default=10.)
    a = p.parse_args()
    model = a.model or ('tiny' if a.tokenizer is None else str(Path(tempfile.gettempdir())/'qwen3b-random'))
    if a.tokenizer and not a.model: full_size(Path(model), a.tokenizer)
    info = open_video(a.video).info
    engine = Engine(model, 'none', 'logistics', batch=a.batch)
    work = [Segment(n, i*7., i*7. + 7) for i, n in enumerate(LOGISTICS.names)]
    engine.prior = TimelinePrior(Grammar.learn([work], LOGISTICS))
    engine.predict(a.video)
    found = engine.analyze(a.video, a.stride)
    times = info.duration/found.seconds
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    memory = f'{torch.cuda.max_memory_allocated()/2**30:.1f}' if torch.cuda.is_available() else '-'
    dtype = next(engine.loaded.model.parameters()).dtype
    table(f"{gpu}, torch {torch.__version__}, transformers {version('transformers')}, {dtype}",
          ('video', 'seconds of it', 'windows', 'seconds taken', 'times real time', 'bound', 'GiB allocated'),
          [(f'{info.width}x{info.height}', f'{info.duration:.0f}', str(found.windows), f'{found.seconds:.1f}',
            f'{times:.1f}', bound('analyze', times, a.bound), memory)])
    if failed: raise SystemExit(f'a bound does not hold: {", ".join(failed)}')


if __name__ == '__main__': main()
