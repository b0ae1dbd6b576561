"""What a model loses in other light and before other cameras: page 3l's table, over people.

    python bench/robustness.py OUT.json.gz --people FOLDER [--adapter tiny] [--clips 12] [--recordings]

FOLDER is what `bench/people.py` left: `twin-SEED` and `shards-SEED` of each person. So many boundary clips of each
are taken, at equal distances in the order of their ids, as recorded and under every condition of page 3l; with
`--recordings` also at 15 fps and coarsely encoded, which writes the videos again. A run that is killed goes on.
"""
import argparse, gzip, json, sys
from pathlib import Path

from vlmtemporal.adapters import Adapter
from vlmtemporal.basics import json_hash, read_json, write_json
from vlmtemporal.evaluation import clip_of, cut_again, evaluation_set, predict_examples, sessions_of_split
from vlmtemporal.loading import load_model
from vlmtemporal.results import MethodPredictions, prediction_from_dict
from vlmtemporal.robustness import AS_RECORDED, CONDITIONS, RECORDINGS, Trial, as_shown, recorded_as
from vlmtemporal.shards import find_split


def some(shards: Path, n: int) -> list:
    "Boundary clips of a person, at equal distances."
    found = [e for e in evaluation_set(find_split(shards, 'test'), 0) if e.kind == 'boundary']
    return [found[i*len(found)//n] for i in range(min(n, len(found)))]


def shown(people: dict, condition: str, spec, kept: Path) -> list:
    "All people's clips under a condition."
    if condition not in RECORDINGS: return as_shown([e for es in people.values() for e in es], condition)
    out = []
    for folder, examples in people.items():
        root, test = folder.with_name(folder.name.replace('shards', 'twin')), find_split(folder, 'test')
        needed = {e.session for e in examples}
        again = [recorded_as(s, RECORDINGS[condition], kept/f'{folder.name}-{s.key}.mp4')
                 for s in sessions_of_split(root, test) if s.key in needed]
        out += cut_again(examples, spec, again)
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    p.add_argument('--people', type=Path, required=True)
    p.add_argument('--adapter', default='tiny')
    p.add_argument('--clips', type=int, default=12)
    p.add_argument('--recordings', action='store_true')
    p.add_argument('--conditions', nargs='+', default=list(CONDITIONS))
    how = p.parse_args()
    adapter = Adapter.load(how.adapter)
    kept = how.out.with_suffix('.parts')
    kept.mkdir(parents=True, exist_ok=True)
    folders = [f for f in sorted(how.people.glob('shards-*')) if (f/'test'/'index.json').exists()]
    if not folders: sys.exit(f'{how.people}: no shards-SEED with a test split; `python bench/people.py` makes them')
    people = {f: some(f, how.clips) for f in folders}
    taxonomy = find_split(folders[0], 'test').taxonomy
    loaded, said = load_model('tiny', how.adapter), {}
    for condition in (AS_RECORDED, *how.conditions, *(RECORDINGS if how.recordings else ())):
        asked = [adapter.weights_sha256, condition, how.clips, *(str(f.resolve()) for f in people)]
        part = kept/f'{json_hash(asked)[:16]}.json'
        if not part.exists():
            answers = predict_examples(loaded, shown(people, condition, adapter.spec, kept), taxonomy, name=condition)
            write_json(part, [p.to_dict() for p in answers])
        said[condition] = MethodPredictions.of(condition, [prediction_from_dict(d) for d in read_json(part)])
        print(condition, file=sys.stderr, flush=True)
    clips = [clip_of(e) for es in people.values() for e in es]
    who = [f'{f.name.removeprefix("shards-")}/{e.subject}' for f, es in people.items() for e in es]
    command = ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    made_by = dict(command=command, model='tiny', adapter=adapter.weights_sha256)
    trial = Trial(taxonomy, clips, who, said, made_by)
    how.out.write_bytes(gzip.compress(json.dumps(trial.to_dict(), separators=(',', ':')).encode(), 9, mtime=0))
    print(trial._repr_markdown_())
    return 0


if __name__ == '__main__': sys.exit(main())
