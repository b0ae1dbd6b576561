"""What dropout is worth: the small model's adapter learnt with and without it, on the same clips, from the same seeds.

    python bench/dropout.py --out FOLDER [--dropouts 0 0.05] [--seeds 0 1 2] [--steps 120] [--threads 2] [--jobs 8]

Page 2i's recipe, shortened: six people of the twin of seed 7, `--sessions` of each, are learnt for `--steps` steps.
Asked are people who are in no training: U0107 and U0108 of that twin, and of those of seeds 301 to 303, `--clips` of
each. The differences are of OCA and AA@1, the first dropout less the others: over all seeds with intervals over people
(`paired`), and of each seed alone. So many jobs run at once, each on so many threads. What is there in FOLDER is not
done again.
"""
import argparse, os, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sampling import table

LEARNT = [(7, f'U010{i}') for i in range(1, 7)]
ASKED = [(seed, who) for seed in (7, 301, 302, 303) for who in ('U0107', 'U0108')]
METRICS = 'OCA', 'AA@1'


def twin_of(out: Path, seed: int, who: str) -> Path: return out/'drawn'/f'{seed}-{who}'
def answers_of(out: Path, dropout: str, seed: str) -> Path: return out/f'answers-{dropout}-{seed}.json'


def draw(out: Path, seed: str, who: str, sessions: str):
    "One person's sessions."
    from vlmtemporal.twin import make_twin
    make_twin(twin_of(out, int(seed), who), int(seed), sessions=int(sessions), only=[who])


def cut(out: Path, seed: str, who: str):
    "The clips of a person who is asked about."
    from vlmtemporal.dataset import build
    from vlmtemporal.frames import FrameSpec
    split = dict(U0107='val', U0108='test')[who]
    build(twin_of(out, int(seed), who), out/'asked'/f'{seed}-{who}', split, FrameSpec('uniform'))


def cut_learnt(out: Path, sessions: str, workers: str):
    "The training split, of all six people in one folder."
    from vlmtemporal.basics import read_json, write_json
    from vlmtemporal.dataset import build
    from vlmtemporal.frames import FrameSpec
    root = out/f'twin-{sessions}'
    for seed, who in LEARNT: shutil.copytree(twin_of(out, seed, who)/who, root/who, dirs_exist_ok=True)
    recipe = read_json(twin_of(out, *LEARNT[0])/'twin.json')
    write_json(root/'twin.json', {k: v for k, v in recipe.items() if k != 'only'})
    build(root, out/f'shards-{sessions}', 'train', FrameSpec('uniform'), workers=int(workers))


def learn(out: Path, dropout: str, seed: str, steps: str, sessions: str, clips: str):
    "An adapter, and whether each of its answers is right."
    from vlmtemporal.basics import write_json
    from vlmtemporal.evaluation import evaluation_set, predict_examples
    from vlmtemporal.loading import load_model
    from vlmtemporal.metrics import clip_scores
    from vlmtemporal.shards import Shards
    from vlmtemporal.train import fit
    from vlmtemporal.trainer import TrainConfig
    config = TrainConfig(max_steps=int(steps), learning_rate=2e-3, micro_batch=16, accumulation=1, seed=int(seed),
                         gradient_checkpointing=False, lora_dropout=float(dropout))
    run = out/f'run-{dropout}-{seed}'
    history = fit(out/f'shards-{sessions}', run, config=config, resume=(run/'run.json').exists()).history
    loaded, rows = load_model('tiny', run/'adapter'), []
    for person, who in ASKED:
        shards = Shards(out/'asked'/f'{person}-{who}'/dict(U0107='val', U0108='test')[who])
        found = evaluation_set(shards, 0)
        found = [found[i*len(found)//int(clips)] for i in range(int(clips))] if len(found) > int(clips) else found
        answers = predict_examples(loaded, found, shards.taxonomy)
        right = clip_scores([p.answer for p in answers], [e.answer for e in found])
        rows += [dict(person=f'{person}-{who}', key=e.key, **{m: float(right[m][i]) for m in METRICS})
                 for i, e in enumerate(found)]
    write_json(answers_of(out, dropout, seed), dict(rows=rows, losses=[h['loss'] for h in history]))


PARTS = dict(draw=draw, cut=cut, cut_learnt=cut_learnt, learn=learn)


def together(out: Path, parts: list[tuple], jobs: int, threads: int):
    "Parts of the work, each in a process of its own, so many at once; the first that fails ends it."
    names = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
    env = os.environ | dict.fromkeys(names, str(threads))
    def run(part):
        command = [sys.executable, __file__, '--out', out, '--part', *part]
        return part, subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    with ThreadPoolExecutor(jobs) as pool:
        for part, done in pool.map(run, parts):
            print(f"{time.strftime('%H:%M:%S')} {' '.join(map(str, part))}", file=sys.stderr, flush=True)
            if done.returncode: sys.exit(f'{part} failed: {done.stderr[-2000:]}')


def settings_kept(how):
    "A folder is of one recipe."
    from vlmtemporal.basics import read_json, write_json
    recipe, where = {k: getattr(how, k) for k in ('steps', 'sessions', 'clips')}, how.out/'recipe.json'
    how.out.mkdir(parents=True, exist_ok=True)
    if where.exists() and read_json(where) != recipe: sys.exit(f'{how.out} holds another recipe: {read_json(where)}')
    write_json(where, recipe)


def said(out: Path, dropout: str, seeds: list[str]) -> tuple[dict, list, np.ndarray]:
    "Right or not by metric (n,), whom each is about, and which seed."
    from vlmtemporal.basics import read_json
    rows = [(s, r) for s in seeds for r in read_json(answers_of(out, dropout, s))['rows']]
    return {m: np.array([r[m] for _, r in rows]) for m in METRICS}, [r['person'] for _, r in rows], \
        np.array([s for s, _ in rows])


def report(out: Path, dropouts: list[str], seeds: list[str]):
    "Both tables."
    from vlmtemporal.basics import read_json
    from vlmtemporal.statistics import estimate, paired
    found, rows = {d: said(out, d, seeds) for d in dropouts}, []
    for d in dropouts:
        right, people, _ = found[d]
        each = estimate(lambda at, right=right: {m: right[m][at].mean() for m in METRICS}, people, shares=METRICS)
        last = np.mean([read_json(answers_of(out, d, s))['losses'][-10:] for s in seeds])
        rows.append((d, f'{last:.3f}', *(interval(each[m]) for m in METRICS)))
    table(f'{len(seeds)} seeds, {len(set(people))} people, {len(people)} answers each',
          ('dropout', 'loss of the last ten steps', *METRICS), rows)
    (a, people, which), rows = found[dropouts[0]], []
    for d in dropouts[1:]:
        b = found[d][0]
        both = {m: np.concatenate([a[m], b[m]]) for m in METRICS}
        pair = paired(lambda at, both=both: {m: both[m][at].mean() for m in METRICS}, people)
        differs = [f"{interval(pair[m])}, p {pair[m]['p']:.2f}" for m in METRICS]
        rows.append((f'{dropouts[0]} less {d}, all seeds', *differs))
        rows += [(f'seed {s}', *(f'{(a[m] - b[m])[which == s].mean():+.3f}' for m in METRICS)) for s in seeds]
    table('Differences', ('', *METRICS), rows)


def interval(row: dict) -> str: return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--dropouts', nargs='+', default=['0', '0.05'])
    p.add_argument('--seeds', nargs='+', default=['0', '1', '2'])
    p.add_argument('--steps', type=int, default=120)
    p.add_argument('--sessions', type=int, default=4)
    p.add_argument('--clips', type=int, default=24)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--jobs', type=int, default=8)
    p.add_argument('--part', nargs='+', help=argparse.SUPPRESS)
    how = p.parse_args()
    if how.part: return PARTS[how.part[0]](how.out, *how.part[1:])
    settings_kept(how)
    cores = how.jobs*how.threads
    together(how.out, [('draw', *who, how.sessions) for who in LEARNT] + [('draw', *who, 1) for who in ASKED], cores, 1)
    together(how.out, [('cut_learnt', how.sessions, max(1, cores - 4))] + [('cut', *who) for who in ASKED], how.jobs, 1)
    missing = [(d, s) for s in how.seeds for d in how.dropouts if not answers_of(how.out, d, s).exists()]
    together(how.out, [('learn', d, s, how.steps, how.sessions, how.clips) for d, s in missing], how.jobs, how.threads)
    report(how.out, how.dropouts, how.seeds)


if __name__ == '__main__': main()
