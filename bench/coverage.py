"""How often 95% intervals hold the truth, and how often equal methods are called different: the table of page 0b.

    python bench/coverage.py [--experiments 2000] [--seed 0]

Groups of 54 clips with an intra-group correlation of .05 and .1 (beta-binomial); before: the percentile bootstrap."""
import argparse, platform, time

import numpy as np

from vlmtemporal.basics import markdown_table, progress
from vlmtemporal.clips import Answer
from vlmtemporal.metrics import clip_report, score_clips
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.statistics import MIN_GROUPS, estimate, estimate_mean, paired

NAMES = LOGISTICS.names


def hits_of(g, groups, rate, correlation, clips=54):
    "Hits of every group, bool (groups, clips)."
    spread = 1/correlation - 1
    return g.random((groups, clips)) < g.beta(rate*spread, (1 - rate)*spread, (groups, 1))


def percentile(hits, g, n=500):
    "What was used before: percentiles of a bootstrap over groups."
    means = hits.mean(1)
    return np.percentile(means[g.integers(0, len(means), (n, len(means)))].mean(1), [2.5, 97.5])


def means(g, n, groups, rate, correlation):
    "Shares of experiments whose interval of a mean holds the rate: before, now; NaN where there is none."
    before, now = 0, 0
    for _ in range(n):
        hits = hits_of(g, groups, rate, correlation)
        low, high = percentile(hits, g)
        found = estimate_mean(hits, share=True)
        before += low <= rate <= high
        now += found['low'] <= rate <= found['high']
    return before/n, now/n if groups >= MIN_GROUPS else np.nan


def answered(g, groups, rate, correlation, clips=54):
    "Scores of answers to clips of five operations, for everything that a report has."
    hits = hits_of(g, groups, rate, correlation, clips).ravel()
    true = g.choice(5, len(hits), p=[.35, .25, .2, .12, .08])
    said = np.where(hits, true, (true + g.integers(1, 5, len(hits))) % 5)
    sloppy = np.repeat(np.exp(g.normal(0, .3, groups)), clips)
    end = np.clip(70 + np.round(g.standard_t(3, len(hits))*3*sloppy), 1, 124).astype(int)
    def answers(names, ends): return [Answer(NAMES[k], 0, int(e), NAMES[k]) for k, e in zip(names, ends, strict=True)]
    return score_clips(answers(said, end), answers(true, np.full(len(hits), 70)), LOGISTICS)


def reports(g, n, groups, names):
    "Shares of experiments whose interval in a report holds the truth, by metric."
    truth, held = answered(g, 4000, .9, .05).metrics(), dict.fromkeys(names, 0)
    for _ in range(n):
        found = clip_report(answered(g, groups, .9, .05), np.repeat(range(groups), 54).tolist())
        for name in names: held[name] += found[name]['low'] <= truth[name] <= found[name]['high']
    return {name: k/n for name, k in held.items()}


def segments(g, groups):
    "Matches, predicted and true segments of every group's sessions, (groups, 3): what F1@50 is made of."
    true = g.integers(40, 70, groups)
    matches = g.binomial(true, g.beta(.85*19, .15*19, groups))
    return np.stack([matches, true + g.poisson(3, groups), true], 1)


def f1_at_50(g, n, groups):
    "The share of experiments whose interval of F1@50 holds the truth."
    def f1(counts): return 2*counts[0]/(counts[1] + counts[2])
    truth, held = f1(segments(g, 200_000).sum(0)), 0
    for _ in range(n):
        counts = segments(g, groups)
        found = estimate(lambda at, counts=counts: f1(counts[at].sum(0)), range(groups), {None})
        held += found['low'] <= truth <= found['high']
    return held/n


def pairs(g, n, groups, ours, theirs, correlation):
    "The share of experiments whose interval of a difference holds the truth, and in which p is at most .05."
    held, rejected, where = 0, 0, np.arange(groups)
    for _ in range(n):
        rates = np.r_[hits_of(g, groups, ours, correlation).mean(1), hits_of(g, groups, theirs, correlation).mean(1)]
        found = paired(lambda at, rates=rates: rates[at].mean(), where, n=999)
        held += found['low'] <= ours - theirs <= found['high']
        rejected += found['p'] <= .05
    return held/n, rejected/n


def percent(x): return '-' if np.isnan(x) else f'{100*x:.1f}%'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--experiments', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    g, n, began = np.random.default_rng(args.seed), args.experiments, time.time()
    cases = [(rate, rho, groups) for rate in (.93, .5) for rho in (.05, .1) for groups in (2, 3, 5, 8, 10, 12, 30)]
    rows = [[rate, rho, groups, *map(percent, means(g, n, groups, rate, rho))]
            for rate, rho, groups in progress(cases, 'means')]
    print(markdown_table(['rate', 'correlation', 'groups', 'bootstrap before', 'now'], rows), '\n')
    names = 'OCA', 'macro F1', 'class-mean recall', 'mIoU', 'tIoU@0.7', 'boundary error'
    found = {groups: reports(g, max(n//5, 1), groups, names) | {'F1@50': f1_at_50(g, n, groups)}
             for groups in progress((8, 12), 'reports')}
    print(markdown_table(['metric', *(f'{k} groups' for k in found)],
                         [[m, *(percent(f[m]) for f in found.values())] for m in (*names, 'F1@50')]), '\n')
    cases = [(a, b, rho, groups) for a, b, rho in ((.93, .93, .05), (.93, .93, .1), (.5, .5, .05), (.93, .9, .05),
                                                   (.93, .5, .1)) for groups in (8, 12)]
    rows = [[a, b, rho, groups, *map(percent, pairs(g, max(n//2, 1), groups, a, b, rho))]
            for a, b, rho, groups in progress(cases, 'pairs')]
    print(markdown_table(['rate', 'other rate', 'correlation', 'groups', 'interval holds', 'p <= .05'], rows), '\n')
    print(f'{n} experiments (a fifth for the report, half for pairs), seed {args.seed}, {time.time() - began:.0f} s, '
          f'{platform.machine()}, numpy {np.__version__}')


if __name__ == '__main__': main()
