"""What many labels cost: answers about the same clips with ten labels and with many, alternating, one model, one run.

    python bench/labels.py [--labels 120] [--model tiny] [--batch 8] [--repeat 7] [--describe] [--json]

The many labels are of three scripts (Latin, Japanese, Devanagari), some are the beginning of others; the ten are the
first ten of them in Latin. 8 pictures of 336x336 a clip. The two medians and their ratio are printed, on a CPU of the
processor's time, which other programs disturb less than the clock's. The exit code is 1 when the ratio is above 1.33
(`--most`).
"""
import argparse, json, platform, statistics, sys, time
from importlib.metadata import version

import numpy as np
import torch

from vlmtemporal.decode import constrained
from vlmtemporal.loading import LoadedModel, load_model
from vlmtemporal.operations import Operation, Taxonomy
from vlmtemporal.shards import Example

VERBS = (('Cut', 'Fold', 'Glue', 'Press', 'Drill', 'Sand', 'Paint', 'Clean', 'Lift', 'Check'),
         ('切る', '折る', '貼る', '押す', '穴をあける', '磨く', '塗る', '拭く', '持ち上げる', '確認する'),
         ('काटना', 'मोड़ना', 'चिपकाना', 'दबाना', 'छेद करना', 'घिसना', 'रंगना', 'साफ करना', 'उठाना', 'जांचना'))
THINGS = (('', ' Board', ' Board Edge', ' Panel'), ('', '板', '板の端', '部品'),
          ('', ' तख्ता', ' तख्ते का किनारा', ' पैनल'))


def words(n: int) -> list[str]:
    "`n` names, script by script in turn; every name without a thing is the beginning of others."
    all_of = [[f'{verb}{thing}' for thing in things for verb in verbs] for verbs, things in zip(VERBS, THINGS)]
    some = [name for three in zip(*all_of) for name in three]
    more = [f'{name} {i}' for i in range(2, 2 + n//len(some)) for name in some]
    return [*some, *more][:n]


def taxonomy(names: list[str], describe: bool) -> Taxonomy:
    told = 'what one sees while {} is done, in a sentence'
    rows = [Operation(i + 1, name, told.format(name) if describe else '') for i, name in enumerate(names)]
    return Taxonomy(f'{len(names)} labels', tuple(rows), names[-1], 'work in a shop', describe)


def clips(n: int, side: int = 336) -> list[Example]:
    "Clips of noise."
    g = np.random.default_rng(0)
    frames = lambda: g.integers(0, 255, (8, side, side, 3), dtype=np.uint8)
    return [Example(str(i), frames(), np.sort(g.choice(125, 8, replace=False)), None, 's', 0., 125) for i in range(n)]


def measure(loaded: LoadedModel, lists: list[Taxonomy], some: list[Example], repeat: int) -> list[float]:
    "Median seconds of an answer for each of the lists; they take turns, and the first turn is not counted."
    times: list[list[float]] = [[] for _ in lists]
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for _ in range(1 + repeat):
        for spent, one in zip(times, lists):
            begin = clock()
            found = constrained(loaded, some, one)
            if torch.cuda.is_available(): torch.cuda.synchronize()
            spent.append((clock() - begin)/len(some))
            assert all(abs(sum(p.probabilities.values()) - 1) < 1e-9 for p in found)
    return [statistics.median(spent[1:]) for spent in times]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--labels', type=int, default=120)
    p.add_argument('--model', default='tiny')
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--repeat', type=int, default=7)
    p.add_argument('--describe', action='store_true', help='both lists have descriptions in the prompt')
    p.add_argument('--most', type=float, default=1.33)
    p.add_argument('--json', action='store_true')
    a = p.parse_args()
    loaded = load_model(a.model, quantize=False)
    lists = [taxonomy(VERBS[0], a.describe), taxonomy(words(a.labels), a.describe)]
    few, many = measure(loaded, lists, clips(a.batch), a.repeat)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{platform.machine()}, CPU'
    found = dict(model=a.model, batch=a.batch, labels=a.labels, described=a.describe, ten_s=round(few, 4),
                 many_s=round(many, 4), ratio=round(many/few, 3), machine=where, torch=version('torch'))
    if a.json: print(json.dumps(found))
    else: print('\n'.join(f'{k:10} {v}' for k, v in found.items()))
    if many > a.most*few: sys.exit(f'{a.labels} labels cost {many/few:.2f} times what ten do, more than {a.most:g}')


if __name__ == '__main__': main()
