"""Timelines of real human work: published frame scores of 50Salads and GTEA, read by what other splits taught.

    python bench/real_work.py [--data FOLDER] [--only NAME ...] [--splits all|chosen|last] [--seconds 2] [--json OUT]
    python bench/real_work.py --twin

The folder holds NAME.npz with `splitK_videoI_scores` (T, C) and `splitK_videoI_truth` (T,). Each split is read by a
reader that was fitted on all others: order, durations, calibration and scale. `chosen` are all splits but the last, on
which the method was chosen; `last` is that one. Every set's rows: the best class of each frame, the reading of the
whole video, and the live reading, which is late by at most `--seconds` at the set's rate.

`--twin` asks the same of the twelve drawn people whose evaluations come with the package: one row a second of the
shipped adapter, each person read by what the eleven others taught, beside the HSMM that `analyze` uses.
"""
import argparse, json, sys, time
from pathlib import Path

import numpy as np

from vlmtemporal.backbones import bundled_model
from vlmtemporal.eval import rescore
from vlmtemporal.real_work import fit_reader, live_reading, reading_scores
from vlmtemporal.timeline import STEP

DATA = Path(__file__).resolve().parents[2]/'shared'/'real-labels'/'timelines'
# frames a second, which are not in the files: mean frames over the mean length that the data sets publish (385 s, 74 s)
MEAN_SECONDS = {'50Salads': 385., 'GTEA': 74.}
MEASURES = 'F1@50', 'F1@10', 'edit', 'boundary', 'accuracy'
WHERE = 'https://github.com/colincsl/TemporalConvolutionalNetworks has the scores of its models'


def videos_of(path: Path) -> list[tuple[int, np.ndarray, np.ndarray]]:
    "Split, scores and truth of each video."
    data = np.load(path)
    names = [name.removesuffix('_truth') for name in data if name.endswith('_truth')]
    return [(int(name.split('_')[0][5:]), data[f'{name}_scores'], data[f'{name}_truth']) for name in names]


def rate_of(name: str, videos: list) -> float:
    "Frames a second, as far as the published lengths tell; one a second where they do not."
    seconds = next((s for start, s in MEAN_SECONDS.items() if name.startswith(start)), None)
    return 1. if seconds is None else float(np.mean([len(y) for _, _, y in videos]))/seconds


def read_set(videos: list, test: list[int], lag: int) -> dict:
    "What each way of reading scores on the test splits."
    found, truth = {'best of each frame': [], 'read': [], 'live': []}, []
    for split in test:
        reader = fit_reader(*zip(*((x, y) for k, x, y in videos if k != split)))
        for x, y in ((x, y) for k, x, y in videos if k == split):
            found['best of each frame'].append(np.argmax(x, 1))
            found['read'].append(reader.read(x))
            found['live'].append(np.array(list(live_reading(reader, x, lag))))
            truth.append(y)
    return {name: reading_scores(labels, truth) for name, labels in found.items()}


def twin_table():
    "The drawn people: best class, HSMM, reading, live reading, at one row a second."
    sessions = rescore(*sorted((bundled_model()/'results').glob('2*.json.gz'))).sessions
    every, recorded, taxonomy = round(1/STEP), sessions.sessions, sessions.sessions[0].taxonomy
    def labels(segments, n):
        at = (np.arange(n)*every + every//2 + .5)*STEP
        inside = [[s for s in segments if s.start <= t < s.end] for t in at]
        return np.array([taxonomy.index(s[0].operation if s else taxonomy.null) for s in inside])
    x = [w.rows()[every//2::every] for w in sessions.windows['tiny adapter']]
    truth = [labels(s.segments, len(rows)) for s, rows in zip(recorded, x)]
    lines = sessions.timelines['tiny adapter, HSMM']
    found = {'best of each frame': [rows.argmax(1) for rows in x],
             'HSMM': [labels(t.segments, len(rows)) for t, rows in zip(lines, x)],
             'read': [], 'live, 2 frames late': []}
    for i, rows in enumerate(x):
        others = [j for j in range(len(x)) if j != i]
        reader = fit_reader([x[j] for j in others], [truth[j] for j in others])
        found['read'].append(reader.read(rows))
        found['live, 2 frames late'].append(np.array(list(live_reading(reader, rows, 2))))
    for name, labels_ in found.items():
        scores = reading_scores(labels_, truth)
        print(f'| twin, {len(x)} people | {name} | {" | ".join(f"{scores[m]:.1f}" for m in MEASURES)} |', flush=True)


def splits_of(videos: list, which: str) -> tuple[list, list[int]]:
    "The videos that may be used and the splits that are read."
    splits = sorted({k for k, _, _ in videos})
    if which == 'chosen': return [v for v in videos if v[0] != splits[-1]], splits[:-1]
    return videos, splits if which == 'all' else splits[-1:]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=DATA)
    p.add_argument('--only', nargs='*')
    p.add_argument('--splits', choices=('all', 'chosen', 'last'), default='all')
    p.add_argument('--seconds', type=float, default=2., help='that the live reading is late')
    p.add_argument('--json', type=Path)
    p.add_argument('--twin', action='store_true', help='the drawn people instead')
    args = p.parse_args()
    if args.twin: return twin_table()
    files = [f for f in sorted(args.data.glob('*.npz')) if not args.only or f.stem in args.only]
    if not files: sys.exit(f'{args.data}: no sets of frame scores; {WHERE}')
    print(f'| set | reading | {" | ".join(MEASURES)} |\n| {" | ".join("---" for _ in range(7))} |')
    results = {}
    for f in files:
        began, videos = time.perf_counter(), videos_of(f)
        lag = int(args.seconds*rate_of(f.stem, videos))
        results[f.stem] = found = read_set(*splits_of(videos, args.splits), lag)
        for name, s in found.items():
            shown = f'live, {lag} frames late' if name == 'live' else name
            print(f'| {f.stem} | {shown} | {" | ".join(f"{s[m]:.1f}" for m in MEASURES)} |', flush=True)
        print(f'{f.stem}: {time.perf_counter() - began:.0f} s', file=sys.stderr)
    def mean_gain(name, m): return np.mean([s[name][m] - s['best of each frame'][m] for s in results.values()])
    for name in ('read', 'live'):
        print(f'{name} over best of each frame, mean of {len(results)} sets: '
              + ', '.join(f'{m} {mean_gain(name, m):+.1f}' for m in MEASURES))
    if args.json: args.json.write_text(json.dumps(results, indent=1))


if __name__ == '__main__': main()
