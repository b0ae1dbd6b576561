"""Chapter 1's speed: building beside decoding, one core and two, and reading back.

    python bench/dataset.py [--runs 3] [--engine ray]

Every row is a process of its own that may use the cores that it names, started in turn; medians. The loop that only
decodes is the one a user would write, with OpenCV's own threads. The exit code is 1 when a bound does not hold.
`--engine ray` compares a local build by two workers with one on a Ray cluster of two nodes with a core each, in turn.
"""
import argparse, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

from sampling import bound, failed, table
from vlmtemporal.dataset import build
from vlmtemporal.openpack import sessions
from vlmtemporal.shards import Shards
from vlmtemporal.twin import make_twin

DECODE = '''
import sys, time, cv2
begin, n = time.perf_counter(), 0
for path in sys.argv[1:]:
    cap = cv2.VideoCapture(path)
    while (got := cap.read())[0]:
        cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB)
        n += 1
print(time.perf_counter() - begin, n)
'''
BUILD = '''
import sys, time
from vlmtemporal.dataset import build
if __name__ == '__main__':
    begin = time.perf_counter()
    built = build(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
    print(time.perf_counter() - begin, sum(b.examples for b in built))
'''


def timed(program, *args, cores=1):
    "What a program prints that runs on so many cores: seconds, and how many things it made."
    def pin(): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    with tempfile.NamedTemporaryFile('w', suffix='.py') as f: # a file: worker processes import it
        f.write(program)
        f.flush()
        run = subprocess.run([sys.executable, f.name, *map(str, args)], capture_output=True, text=True, check=True,
                             preexec_fn=pin)
    seconds, n = run.stdout.split()
    return float(seconds), int(n)


def bench_build(root, out, runs):
    "Building beside decoding."
    found = sessions(root)
    sources = [s.source for s in found]
    work = {'only decode, all cores': lambda i: timed(DECODE, *sources, cores=2),
            'only decode, one core': lambda i: timed(DECODE, *sources),
            '`build`, one worker, one core': lambda i: timed(BUILD, root, out/f'one{i}', 1),
            '`build`, two workers, two cores': lambda i: timed(BUILD, root, out/f'two{i}', 2, cores=2)}
    took = {name: [] for name in work}
    for i in range(runs):
        for name, f in work.items(): took[name].append(f(i))
    (_, frames), (_, examples) = took['only decode, one core'][0], took['`build`, one worker, one core'][0]
    all_cores, one_core, one, two = seconds = [statistics.median(t for t, _ in v) for v in took.values()]
    ratios = ('', '', f'{one_core/one:.2f} of decoding on one core',
              f'{all_cores/two:.2f} of decoding on two, {one/two:.2f} of one worker')
    must = ('', '', '', f"{bound('build beside decoding', all_cores/two, .8)}, {bound('two workers', one/two, 1.7)}")
    length = sum(s.segments[-1].end for s in found)
    table(f'{examples} examples from {len(found)} sessions, {length:.0f} s of 640x480, {frames} frames; '
          f'medians of {runs} runs', ('work', 'seconds', 'frames/s', 'ratio', 'must be'),
          [(n, f'{t:.1f}', f'{frames/t:.0f}', r, m) for n, t, r, m in zip(work, seconds, ratios, must)])


def bench_cluster(root, out, runs):
    "Building by two workers beside building on two nodes of a Ray cluster, which is up already."
    os.environ.update(RAY_USAGE_STATS_ENABLED='0', RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO='0')
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    for _ in range(2): cluster.add_node(num_cpus=1)
    took = dict(local=[], ray=[])
    for i in range(runs):
        for engine in ('local', 'ray') if i % 2 else ('ray', 'local'):
            begin = time.perf_counter()
            where = cluster.address if engine == 'ray' else None
            build(root, out/f'{engine}{i}', workers=2, engine=engine, address=where)
            took[engine].append(time.perf_counter() - begin)
    cluster.shutdown()
    local, far = (statistics.median(t) for t in took.values())
    table(f'{len(sessions(root))} sessions; medians of {runs} runs', ('work', 'seconds', 'ratio', 'must be'),
          [('`build`, two workers', f'{local:.1f}', '', ''),
           ('`build --engine ray`, two nodes of one core', f'{far:.1f}', f'{local/far:.2f} of two workers',
            bound('ray', local/far, .85))])


def bench_reading(folder, runs):
    "Reading a built split from the first example to the last."
    shards, rates = Shards(folder), []
    for _ in range(runs):
        begin = time.perf_counter()
        n = sum(1 for _ in shards)
        rates.append(n/(time.perf_counter() - begin))
    rate = statistics.median(rates)
    table('Reading back, 8 pictures of 336x336 an example, decoded by two threads',
          ('examples', 'examples/s', 'must be'),
          [(str(len(shards)), f'{rate:.0f}', bound('reading', rate, 250))])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=3)
    p.add_argument('--boxes', type=int, default=4)
    p.add_argument('--engine', choices=('local', 'ray'), default='local')
    a = p.parse_args()
    print(f'{os.cpu_count()} cores, {time.strftime("%Y-%m-%d")}')
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        root = make_twin(tmp/'twin', subjects=8, boxes=a.boxes)
        if a.engine == 'ray': bench_cluster(root, tmp, a.runs)
        else:
            bench_build(root, tmp, a.runs)
            bench_reading(tmp/'one0'/'train', a.runs)
    if failed: sys.exit(f'\ndoes not hold: {"; ".join(failed)}')


if __name__ == '__main__': main()
