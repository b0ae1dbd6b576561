"""The headline: base, adapter and what does not look, on people of twins that nobody has seen, one file a person.

    python bench/people.py OUT --shards SHARDS [--adapter tiny] [--seeds 201 ... 212] [--sessions 2] [--whole 1]

SHARDS holds the training split of page 2i, from which the baselines learn. Each seed is another person at another bench
before another camera: U0108 of a twin of that seed. Its sessions are drawn, all their clips are cut and asked, and the
first `--whole` sessions from end to end. OUT/SEED.json.gz is what `vlmtemporal eval --clips 0 --root` writes as
results.json, gzipped; `vlmtemporal rescore OUT/*.json.gz` pools them by person. A run that is killed goes on: drawn
sessions, shards and answers are kept in OUT. With `--only base` or `--only adapter` it asks that model and writes no
results.

On two cores that were shared with other work, 12 people, 2 sessions each: see page 3.
"""
import argparse, gzip, json, sys
from functools import cache
from pathlib import Path

from vlmtemporal.adapters import Adapter
from vlmtemporal.basics import json_hash, read_json, write_json
from vlmtemporal.clips import Answer
from vlmtemporal.dataset import build
from vlmtemporal.evaluation import (candidates, clip_of, evaluation_set, predict_examples, predict_sessions, prior_of,
                                    provenance, sessions_of_split, show_examples)
from vlmtemporal.frames import FrameSpec
from vlmtemporal.loading import load_model
from vlmtemporal.results import MethodPredictions, Result, SessionPredictions, evidence_hash, prediction_from_dict
from vlmtemporal.shards import find_split
from vlmtemporal.timeline import WindowPredictions
from vlmtemporal.twin import make_twin

WHO, MODEL = 'U0108', 'tiny'
loaded_model = cache(load_model)


def load_base(): return loaded_model(MODEL)


def drawn(out: Path, seed: int, sessions: int, sampler: str):
    "The person's sessions and the test split that is cut from them."
    root, shards = out/f'twin-{seed}', out/f'shards-{seed}'
    make_twin(root, seed, sessions=sessions, only=[WHO])
    if not (shards/'test'/'index.json').exists(): build(root, shards, 'test', FrameSpec(sampler))
    return root, find_split(shards, 'test')


def part_of(out: Path, seed: int, candidate, whole: int) -> Path:
    "Where a model's answers about a person are kept."
    a = candidate.adapter
    key = json_hash([a.weights_sha256, a.temperature] if a else [load_base().fingerprint])[:12]
    return out/'parts'/f'{seed}-{key}-{whole}.json'


def ask(out: Path, seed: int, candidate, root: Path, test, whole: int) -> dict:
    "A model's answers about all clips of a person, and about the first sessions; from disk where they are there."
    kept = part_of(out, seed, candidate, whole)
    if kept.exists(): return read_json(kept)
    loaded = loaded_model(MODEL, candidate.adapter.path) if candidate.adapter else load_base()
    shown = show_examples(evaluation_set(test, 0), candidate.spec, test, root)
    answers = predict_examples(loaded, shown, test.taxonomy, name=candidate.name)
    recorded = sessions_of_split(root, test, whole) if whole else []
    windows = predict_sessions(loaded, recorded, candidate.spec, test.taxonomy)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, dict(predictions=[p.to_dict() for p in answers], windows=[w.to_dict() for w in windows]))
    return read_json(kept)


def judged(out: Path, seed: int, adapter: Adapter, train, sessions: int, whole: int, only: str) -> Result | None:
    "The result on one person, as `evaluate` would make it."
    root, test = drawn(out, seed, sessions, adapter.spec.sampler)
    asked = candidates(MODEL, [adapter], test.spec)
    parts = {c.name: ask(out, seed, c, root, test, whole) for c in asked
             if not only or (only == 'base') == (c.adapter is None)}
    if only: return None
    models = [MethodPredictions.of(n, [prediction_from_dict(p) for p in d['predictions']]) for n, d in parts.items()]
    windows = {n: [WindowPredictions.from_dict(w, test.taxonomy) for w in d['windows']] for n, d in parts.items()}
    priors = {c.name: prior for c in asked if (prior := prior_of(c, train, clips=True))}
    recorded = sessions_of_split(root, test, whole) if whole else []
    clips = [clip_of(e) for e in evaluation_set(test, 0)]
    truths = [Answer.from_dict(train.meta(i)['answer']) for i in range(len(train))]
    found = SessionPredictions(recorded, windows, priors) if recorded else None
    made_by = provenance(test, clips, load_base(), adapters=[adapter], decoder='constrained', seed=0,
                         recorded=recorded, evidence=evidence_hash(clips, truths, models, priors, found))
    return Result(test.taxonomy, clips, truths, models, made_by, priors, found)


def write_gz(path: Path, result: dict):
    "The JSON, gzipped, the same bytes for the same content; whole or not at all."
    text = json.dumps(result, separators=(',', ':')).encode()
    path.with_suffix('.part').write_bytes(gzip.compress(text, 9, mtime=0))
    path.with_suffix('.part').rename(path)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    p.add_argument('--shards', type=Path, required=True)
    p.add_argument('--adapter', default='tiny')
    p.add_argument('--seeds', type=int, nargs='+', default=list(range(201, 213)))
    p.add_argument('--sessions', type=int, default=2)
    p.add_argument('--whole', type=int, default=1)
    p.add_argument('--only', choices=['base', 'adapter'])
    how = p.parse_args()
    adapter, train = Adapter.load(how.adapter), None if how.only else find_split(how.shards, 'train')
    how.out.mkdir(parents=True, exist_ok=True)
    for n, seed in enumerate(how.seeds, 1):
        path = how.out/f'{seed}.json.gz'
        if not path.exists():
            result = judged(how.out, seed, adapter, train, how.sessions, how.whole, how.only)
            if result: write_gz(path, result.to_dict())
        print(f'{n} of {len(how.seeds)}: {seed}', file=sys.stderr, flush=True)
    return 0


if __name__ == '__main__': sys.exit(main())
