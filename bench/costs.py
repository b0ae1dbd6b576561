"""What 53, 5,000 and 500,000 hours of video cost: bytes, core hours, GPU hours, money; and what is slowest.

    python bench/costs.py [--hours 53 5000 500000] [--gpu t4|h200] [--gpu-hour 0.35] [--core-hour 0.05]
                          [--gb-month 0.02] [--labelled 53] [--mbit 2] [--measure]

A table in Markdown. Rates are constants below, each with the command and the machine that measured it; `--measure`
takes those of the processor and of the disk from a small build on this machine instead. What was not measured is called
an assumption. Most of it is linear in the hours; what one index, one program and the people who label can do is not.
"""
import argparse, json, os, platform, resource, subprocess, sys, tempfile, time
from dataclasses import dataclass, replace
from pathlib import Path

HOUR = 3600.


@dataclass(frozen=True)
class Rates:
    "What was measured."
    # python bench/costs.py --measure: four drawn sessions of 640x480, seconds of the processor, which other work
    # changes little; two shared cores of an x86-64 machine, 2026-11-28
    clips_hour: float = 2475.        # examples of an hour of the twin, whose operations last 7 s
    build_seconds: float = .0199     # of a core, an example: decoding, choosing, scaling, compressing
    decode_seconds: float = 47.7     # of a core, an hour at 25 frames a second: decoding alone
    example_bytes: float = 161e3     # of a shard, an example: 8 pictures of 336x336
    index_bytes: float = 306.        # of index.json, an example
    line_bytes: float = 51e3         # of timelines.jsonl, an hour
    # page 2, `bench/train.py TOKENIZER --rows ours:16`: Qwen2.5-VL-3B, one H200 with a T4's memory, steps of 16
    h200_first: float = 1.41         # seconds a step of the first pass
    h200_later: float = 1.14         # of later ones, in which the tower's output is read from its file
    # page 4b, `bench/analyze.py VIDEO TOKENIZER`: the same model in bf16, one H200, a window a second
    h200_analysis: float = 30/600    # seconds for a second of video


@dataclass(frozen=True)
class Assumed:
    "What was not measured."
    # seconds a step of 16 on a T4, on paper: page 2's count of operations at 40% of its 65 TFLOP/s and 80% of its
    # 320 GB/s; nobody has run it
    t4_first: float = 23.
    t4_later: float = 18.
    mbit: float = 2.                 # of a camera's H.264, Mbit/s
    epochs: int = 3
    step: int = 16                   # examples
    labelled: float = 53.            # hours that are trained on, at most: somebody has to label them
    net: float = 10.                 # Gbit/s from where the videos are
    cores_a_gpu: int = 8             # of the machines that are counted in days
    driver_bytes: float = 16e9       # of lines that the program holds which hands out the work
    index_most: float = 256e6        # `remote_files.MOST_READ`: an index that is read from a URL


@dataclass(frozen=True)
class Prices:
    """List prices of 2026, rounded, none of them an offer: a T4 at Google Cloud, an H200 at GPU clouds, a core with its
    memory, a GB in a bucket. Replace them by what you pay."""
    gpu_hour: float                  # dollars, with its share of a machine
    core_hour: float = .05           # dollars
    gb_month: float = .02            # dollars, object storage


GPU_HOURS = dict(t4=.35, h200=4.) # dollars
GPUS = {53: 1, 5_000: 8, 500_000: 512} # that are counted in days


def build_here(boxes=2):
    "Rates of the processor and of the disk: a build of drawn sessions, and an analysis by `tiny`, on this machine."
    from dataset import DECODE
    from vlmtemporal.batches import told
    from vlmtemporal.dataset import build
    from vlmtemporal.engine import Engine
    from vlmtemporal.openpack import sessions
    from vlmtemporal.twin import make_twin
    from vlmtemporal.video import open_video
    with tempfile.TemporaryDirectory() as tmp:
        root = make_twin(Path(tmp)/'twin', boxes=boxes, only=('U0101', 'U0102', 'U0107', 'U0108'))
        sources = [s.source for s in sessions(root)]
        length = sum(open_video(s).info.duration for s in sources)
        begin = cpu()
        built = build(root, Path(tmp)/'out', workers=1)
        took, n = cpu() - begin, sum(b.examples for b in built)
        begin = cpu()
        subprocess.run([sys.executable, '-c', DECODE, *map(str, sources)], check=True, capture_output=True)
        decoded = cpu() - begin - empty()
        files = [p for b in built for p in Path(b.path).iterdir()]
        index = sum(p.stat().st_size for p in files if p.name == 'index.json')
        tars = sum(p.stat().st_size for p in files if p.suffix == '.tar')
        engine, seen = Engine(), open_video(sources[0]).info
        line = len(json.dumps(told(sources[0].name, seen.fps, engine.analyze(sources[0], 5.))))
    return dict(clips_hour=n/length*HOUR, build_seconds=took/n, decode_seconds=decoded/length*HOUR,
                example_bytes=tars/n, index_bytes=index/n, line_bytes=line/seen.duration*HOUR)


def cpu():
    "Seconds of the processor, of this process and of those that it has waited for."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def empty():
    "What starting the decoder's process takes."
    begin = cpu()
    subprocess.run([sys.executable, '-c', 'import cv2'], check=True)
    return cpu() - begin


@dataclass(frozen=True)
class Bill:
    "What so many hours take."
    hours: float
    rates: Rates
    assumed: Assumed
    prices: Prices
    gpu: str
    @property
    def source_bytes(self): return self.hours*HOUR*self.assumed.mbit*1e6/8
    @property
    def trained(self): return min(self.hours, self.assumed.labelled)
    @property
    def examples(self): return self.trained*self.rates.clips_hour
    @property
    def shard_bytes(self): return self.examples*self.rates.example_bytes
    @property
    def core_hours(self):
        "Building what is trained on, and decoding everything once for its analysis."
        return (self.examples*self.rates.build_seconds + self.hours*self.rates.decode_seconds)/HOUR
    @property
    def slower(self):
        "How many times as long as an H200 the card takes for a step; assumed of the analysis, too."
        return 1. if self.gpu == 'h200' else self.assumed.t4_first/self.rates.h200_first
    @property
    def training_hours(self):
        first, later = ((self.rates.h200_first, self.rates.h200_later) if self.gpu == 'h200' else
                        (self.assumed.t4_first, self.assumed.t4_later))
        return self.examples/self.assumed.step*(first + (self.assumed.epochs - 1)*later)/HOUR
    @property
    def analysis_hours(self): return self.hours*self.rates.h200_analysis*self.slower
    @property
    def money(self):
        "Dollars, by what they are paid for; the storage is of one month."
        return dict(training=self.training_hours*self.prices.gpu_hour,
                    analysis=self.analysis_hours*self.prices.gpu_hour,
                    cores=self.core_hours*self.prices.core_hour,
                    storage=(self.source_bytes + self.shard_bytes)/1e9*self.prices.gb_month)
    @property
    def gpus(self): return GPUS.get(round(self.hours), max(1, round(self.hours/1000)))
    @property
    def days(self):
        "On the GPUs and cores that are assumed, step by step."
        return dict(training=self.training_hours/24, # one card: several do not share it without loss
                    analysis=self.analysis_hours/self.gpus/24,
                    cores=self.core_hours/self.gpus/self.assumed.cores_a_gpu/24,
                    network=self.source_bytes*8/(self.assumed.net*1e9)/HOUR/24)
    @property
    def bottleneck(self):
        "What takes longest, and what does not fit."
        slowest = max(self.days, key=self.days.get)
        said = f'{slowest}: {self.days[slowest]:.2g} of {sum(self.days.values()):.2g} days'
        whole = self.hours*self.rates.clips_hour*self.rates.index_bytes
        if whole > self.assumed.index_most and self.hours > self.assumed.labelled:
            said += f'; training on all: an index of {whole/1e9:.0f} GB, and labels of {self.hours:,.0f} h'
        if self.hours*self.rates.line_bytes > self.assumed.driver_bytes:
            said += f'; one run of `analyze`: {self.hours*self.rates.line_bytes/1e9:.0f} GB of lines in one program'
        return said


def size(n):
    "Bytes, as people say them."
    for unit in ('B', 'KB', 'MB', 'GB', 'TB'):
        if n < 1000: return f'{n:.3g} {unit}'
        n /= 1000
    return f'{n:.3g} PB'


def hours(n): return f'{n:,.0f}' if n >= 10 else f'{n:.2g}'


def table(bills):
    "The bills side by side, in Markdown."
    rows = [('', [f'{b.hours:,.0f} h' for b in bills]),
            ('videos', [size(b.source_bytes) for b in bills]),
            ('trained on', [f'{b.trained:,.0f} h, {b.examples:,.0f} examples' for b in bills]),
            ('shards', [size(b.shard_bytes) for b in bills]),
            ('core hours', [hours(b.core_hours) for b in bills]),
            ('GPU hours, training', [hours(b.training_hours) for b in bills]),
            ('GPU hours, analysis', [hours(b.analysis_hours) for b in bills]),
            ('dollars: training, analysis, cores, a month of storage',
             [', '.join(hours(m) for m in b.money.values()) for b in bills]),
            ('dollars', [hours(sum(b.money.values())) for b in bills]),
            ('GPUs of the analysis', [str(b.gpus) for b in bills]),
            ('days: training on one GPU; analysis; cores; network',
             ['; '.join(f'{d:.2g}' for d in b.days.values()) for b in bills]),
            ('bottleneck', [b.bottleneck for b in bills])]
    for i, (name, values) in enumerate(rows):
        print(f'| {name} | {" | ".join(values)} |')
        if not i: print(f'| {" | ".join("---" for _ in range(len(bills) + 1))} |')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--hours', type=float, nargs='+', default=[53, 5_000, 500_000])
    p.add_argument('--gpu', choices=GPU_HOURS, default='t4')
    p.add_argument('--gpu-hour', type=float)
    p.add_argument('--core-hour', type=float, default=Prices.core_hour)
    p.add_argument('--gb-month', type=float, default=Prices.gb_month)
    p.add_argument('--labelled', type=float, default=Assumed.labelled)
    p.add_argument('--mbit', type=float, default=Assumed.mbit)
    p.add_argument('--measure', action='store_true')
    a = p.parse_args()
    rates, assumed = Rates(), Assumed(labelled=a.labelled, mbit=a.mbit)
    if a.measure:
        found = build_here()
        rates = replace(rates, **found)
        print(f'{os.cpu_count()} cores, {platform.machine()}, {time.strftime("%Y-%m-%d")}: '
              + ', '.join(f'{name} {value:.4g}' for name, value in found.items()) + '\n')
    prices = Prices(GPU_HOURS[a.gpu] if a.gpu_hour is None else a.gpu_hour, a.core_hour, a.gb_month)
    table([Bill(h, rates, assumed, prices, a.gpu) for h in a.hours])


if __name__ == '__main__': main()
